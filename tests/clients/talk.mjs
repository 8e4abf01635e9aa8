// A stock client of today that joins one room, says what it hears, and does what it is told.
//
//     node talk.mjs CLIENT URL TOPIC CONFIG
//
// CLIENT    2.11.15, latest or latest-v1 (realtime-js), supabase (supabase-js), or phoenix
// URL       ws://host:port/socket with the client's parameters as its query; for supabase http://host:port
// TOPIC     the room, without realtime:
// CONFIG    the channel's config as JSON; presence is listened to if it has one
//
// Each line of stdin is an order, {"do": "join" | "send" | "bytes" | "post" | "post bytes" | "track" | "untrack" |
// "listen" | "setAuth" | "leave", …}. Lines out: {"what": "joined" | "status" | "broadcast" | "presence" | "system" |
// "change" | "done" | "error", …}. It ends when stdin is closed. The packages are looked for in the working directory.

import { createInterface } from 'node:readline'
import { createRequire } from 'node:module'
import { join } from 'node:path'

const [version, url, topic, config] = process.argv.slice(2)
const require = createRequire(join(process.cwd(), 'package.json'))
const wanted = JSON.parse(config)

function say(what, facts = {}) {
  process.stdout.write(JSON.stringify({ what, ...facts }) + '\n')
}

function connected() {
  if (version === 'supabase') {
    const { createClient } = require('@supabase/supabase-js')
    const { origin, searchParams } = new URL(url)
    return createClient(origin, searchParams.get('apikey') ?? 'none', { auth: { persistSession: false } })
  }
  const { RealtimeClient } = require(`realtime-js-${version.replace('-v1', '')}`)
  const endpoint = new URL(url)
  const params = Object.fromEntries(endpoint.searchParams)
  endpoint.search = ''
  const vsn = version === 'latest-v1' ? { vsn: '1.0.0' } : {}
  return new RealtimeClient(endpoint.href, { params: { apikey: 'none', ...params }, transport: require('ws'), ...vsn })
}

function readable(payload) {
  if (payload instanceof ArrayBuffer) return { bytes: Buffer.from(payload).toString('hex') }
  return payload
}

// A copy: a Buffer is a part of a larger ArrayBuffer.
function bytesOf(hex) {
  return new Uint8Array(Buffer.from(hex, 'hex')).buffer
}

// Phoenix's own client knows neither broadcasts nor tokens by name: here are the same orders in its words.
function phoenix() {
  const { Presence, Socket } = require('phoenix')
  const endpoint = new URL(url)
  const params = Object.fromEntries(endpoint.searchParams)
  endpoint.search = ''
  const socket = new Socket(endpoint.href, { params, transport: require('ws') })
  const channel = socket.channel(`realtime:${topic}`, { config: wanted })
  channel.on('broadcast', ({ event, payload }) => say('broadcast', { event, payload }))
  const presence = new Presence(channel)
  presence.onSync(() => {
    const entries = presence.list((key, { metas }) => [key, metas.map(({ phx_ref_prev, ...meta }) => meta)])
    say('presence', { state: Object.fromEntries(entries) })
  })
  const pushed = (event, payload) =>
    new Promise((resolve) => {
      const push = channel.push(event, payload)
      for (const status of ['ok', 'error', 'timeout']) push.receive(status, () => resolve(status))
    })
  socket.connect()
  return {
    send: ({ event, payload }) => pushed('broadcast', { type: 'broadcast', event, payload }),
    track: ({ payload }) => pushed('presence', { type: 'presence', event: 'track', payload }),
    untrack: () => pushed('presence', { type: 'presence', event: 'untrack' }),
    leave: () => new Promise((resolve) => channel.leave().receive('ok', () => resolve('ok'))),
    join: () => {
      channel
        .join()
        .receive('ok', () => say('joined'))
        .receive('error', ({ reason }) => say('status', { status: 'error', message: reason }))
      return 'asked'
    },
  }
}

function supabase() {
  const client = connected()
  const channel = client.channel(topic, { config: wanted })
  channel.on('broadcast', { event: '*' }, ({ event, payload, meta }) =>
    say('broadcast', { event, payload: readable(payload), ...(meta && { meta }) })
  )
  channel.on('system', {}, (payload) => say('system', { payload }))
  if (wanted.presence) {
    channel.on('presence', { event: 'sync' }, () => say('presence', { state: channel.presenceState() }))
  }

  return {
    send: ({ event, payload }) => channel.send({ type: 'broadcast', event, payload }),
    bytes: ({ event, hex }) => channel.send({ type: 'broadcast', event, payload: bytesOf(hex) }),
    post: ({ event, payload }) => channel.httpSend(event, payload),
    'post bytes': ({ event, hex }) => channel.httpSend(event, bytesOf(hex)),
    track: ({ payload }) => channel.track(payload),
    untrack: () => channel.untrack(),
    setAuth: ({ token }) => (client.realtime ?? client).setAuth(token),
    leave: () => channel.unsubscribe(),
    listen: ({ name, binding }) => {
      channel.on('postgres_changes', binding, (payload) => say('change', { name, payload }))
      return 'asked'
    },
    join: () => {
      channel.subscribe((status, error) => {
        if (status === 'SUBSCRIBED') say('joined')
        else say('status', { status, message: error?.message })
      })
      return 'asked'
    },
  }
}

const orders = version === 'phoenix' ? phoenix() : supabase()
process.on('uncaughtException', (error) => say('error', { message: error.stack }))
createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const order = JSON.parse(line)
    try {
      say('done', { did: order.do, result: await orders[order.do](order) })
    } catch (error) {
      say('error', { did: order.do, message: String(error) })
    }
  })
  .on('close', () => process.exit(0))
