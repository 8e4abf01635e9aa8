// A stock client that joins one topic and says what it hears, one JSON line each.
//
//     node listen.mjs VERSION URL TOPIC EVENTS COUNT
//
// VERSION   0.9.0, 1.0.11, 1.7.5, 2.11.15, latest (all realtime-js) or phoenix
// URL       ws://host:port/socket, with the client's parameters as its query: ?apikey=…
// TOPIC     realtime:public:todos; from 2.x on it is taken apart into schema, table and filter
// EVENTS    what to listen to, with commas between; handed to the client's on() as they stand
// COUNT     how many changes to wait for; 0: until stdin is closed
//
// Lines: {"what": "open" | "joined" | "change" | "closed" | "error", …}. Ends with 0 after COUNT changes or when stdin
// is closed, and with 1 after an error. The packages are looked for in the working directory.

import { createRequire } from 'node:module'
import { join } from 'node:path'

const [version, url, topic, events, count] = process.argv.slice(2)
const require = createRequire(join(process.cwd(), 'package.json'))
const endpoint = new URL(url)
const params = Object.fromEntries(endpoint.searchParams)
endpoint.search = ''
const address = endpoint.href.replace(/\/websocket$/, '')
let remaining = Number(count)

function say(what, facts = {}) {
  process.stdout.write(JSON.stringify({ what, ...facts }) + '\n')
}

function end(code) {
  // Written lines go out before the process does; open sockets and timers do not hold it.
  process.stdout.write('', () => process.exit(code))
}

function fail(reason, facts = {}) {
  say('error', { reason, ...facts })
  end(1)
}

function change(event, payload) {
  say('change', { event, payload })
  remaining -= 1
  if (remaining === 0) end(0)
}

function listenOnChannel(socket, channel, join) {
  for (const event of events.split(',')) channel.on(event, (payload) => change(event, payload))
  channel.onClose(() => say('closed'))
  channel.onError((reason) => say('channel error', { reason: String(reason?.message ?? reason ?? '') }))
  socket.onOpen(() => say('open'))
  socket.onError((error) => say('socket error', { reason: String(error?.message ?? '') }))
  socket.connect()
  channel[join]()
    .receive('ok', (response) => say('joined', { response }))
    .receive('error', (response) => fail('join refused', { response }))
    .receive('timeout', () => fail('join timed out'))
}

const legacy = {
  '0.9.0': () => {
    const { Socket } = require('realtime-js-0.9.0')
    const socket = new Socket(address, { params })
    listenOnChannel(socket, socket.channel(topic, {}), 'join')
  },
  phoenix: () => {
    const { Socket } = require('phoenix')
    const socket = new Socket(address, { params, transport: require('ws') })
    listenOnChannel(socket, socket.channel(topic, {}), 'join')
  },
}

function listenWithRealtimeClient1() {
  const { RealtimeClient } = require(`realtime-js-${version}`)
  const client = new RealtimeClient(address, { params })
  listenOnChannel(client, client.channel(topic), 'subscribe')
}

function listenWithRealtimeClient2() {
  const { RealtimeClient } = require(`realtime-js-${version}`)
  // This client insists on a key, whether the server asks for one or not.
  const client = new RealtimeClient(address, { params: { apikey: 'none', ...params }, transport: require('ws') })
  const [, schema = '*', table, filter] = topic.match(/^realtime:([^:]+)(?::([^:]+))?(?::(.+))?$/) ?? []
  const channel = client.channel(topic.slice('realtime:'.length))
  for (const event of events.split(',')) {
    const binding = Object.fromEntries(Object.entries({ event, schema, table, filter }).filter(([, value]) => value))
    channel.on('postgres_changes', binding, (payload) => change(event, payload))
  }
  channel.on('system', {}, (payload) => say('system', { payload }))
  channel.subscribe((status, error) => {
    if (status === 'SUBSCRIBED') say('joined')
    else if (status === 'CLOSED') say('closed')
    else fail(status, { message: error?.message })
  })
}

process.stdin.on('end', () => end(0)).resume()
process.on('uncaughtException', (error) => fail('the client threw', { message: error.stack }))

const listen = legacy[version] ?? (version.startsWith('1.') ? listenWithRealtimeClient1 : listenWithRealtimeClient2)
listen()
