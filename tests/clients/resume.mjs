// A stock client whose channel resumes, by the server's own helper; it says what it hears, one JSON line each.
//
//     node resume.mjs VERSION URL TOPIC HELPER [HEARTBEAT_MS]
//
// VERSION   1.0.11, 1.7.5, 2.11.15, latest (all realtime-js) or phoenix
// URL       ws://host:port/socket
// TOPIC     realtime:public:todos; from 2.x on it is taken apart into schema and table
// HELPER    the path of walcast-resume.mjs, or none: then it does without, as clients did before
//
// 1.x: a join whose reply was lost makes the next ones go out without a ref until ten seconds have passed; changes come
// all the same, but no "joined" is said.
//
// Lines: {"what": "joined" | "change" | "gap" | "resumed" | "position" | "error", …}; a change has the row's `id` and
// `task` only; positions are said with HEARTBEAT_MS, as they move.
// Ends when stdin is closed. The packages are looked for in the working directory.

import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [version, url, topic, helper, heartbeatMs] = process.argv.slice(2)
const require = createRequire(join(process.cwd(), 'package.json'))

function say(what, facts = {}) {
  process.stdout.write(JSON.stringify({ what, ...facts }) + '\n')
}

process.stdin.on('end', () => process.stdout.write('', () => process.exit(0))).resume()
process.on('uncaughtException', (error) => say('error', { reason: error.stack }))

async function transport() {
  if (helper === 'none') return version.startsWith('1.') ? {} : { transport: require('ws') } // as they come
  const { resuming } = await import(pathToFileURL(helper))
  const underneath = version === '2.11.15' ? { transport: require('ws') } : {} // the others: Node's own
  return {
    transport: resuming({
      onGap: (gap) => say('gap', gap),
      onResume: ({ replayed }) => say('resumed', { replayed }),
      ...underneath,
    }),
  }
}

// The clients wait a second and more before they come back; here that would be most of the time. (Not quick for ever:
// 1.7.5 leaves its own channel when it joins again before the reply to its last join is there.)
const soon = (tries) => [50, 100][tries - 1] ?? 2_000
const options = { ...(await transport()), reconnectAfterMs: soon, rejoinAfterMs: soon }

if (heartbeatMs) {
  options.heartbeatIntervalMs = Number(heartbeatMs)
  let last
  setInterval(() => {
    const [position] = Object.values(options.transport.positions())
    if (position !== last) say('position', { position })
    last = position
  }, 50)
}

function change({ record, new: current }) {
  const { id, task } = record ?? current
  say('change', { id: Number(id), task })
}

function listenOnChannel(socket, channel, joinName) {
  for (const event of version === 'phoenix' ? ['INSERT'] : ['*']) channel.on(event, change)
  socket.connect()
  channel[joinName]().receive('ok', () => say('joined'))
}

if (version === 'phoenix') {
  const { Socket } = require('phoenix')
  const socket = new Socket(url, options)
  listenOnChannel(socket, socket.channel(topic, {}), 'join')
} else if (version.startsWith('1.')) {
  const { RealtimeClient } = require(`realtime-js-${version}`)
  const client = new RealtimeClient(url, options)
  listenOnChannel(client, client.channel(topic), 'subscribe')
} else {
  const { RealtimeClient } = require(`realtime-js-${version}`)
  const client = new RealtimeClient(url, { params: { apikey: 'none' }, ...options })
  const [, schema, table] = topic.split(':')

  function listen() {
    const channel = client.channel('resumes')
    let isOver = false
    channel.on('postgres_changes', { event: '*', schema, table }, change).subscribe((status) => {
      if (status === 'SUBSCRIBED') say('joined')
      // 2.11 comes back after a cut, but never joins its channels again: its applications make them anew.
      else if (version.startsWith('2.11.') && !isOver) {
        isOver = true
        setTimeout(() => client.removeChannel(channel).then(listen), 100)
      }
    })
  }
  listen()
}
