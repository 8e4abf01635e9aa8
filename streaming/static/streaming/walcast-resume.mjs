// Makes the channels of a stock client resume: after a reconnect they get the changes that they missed, each once and in
// order, or the application is told that some are gone.
//
//     import { resuming } from 'http://localhost:4000/static/streaming/walcast-resume.mjs'
//
//     const client = new RealtimeClient('ws://localhost:4000/socket', {
//       transport: resuming({ onGap: ({ topic }) => readEverythingAgain(topic) }),
//     })
//
// For realtime-js 1.x and 2.x, supabase-js (`realtime: { transport: … }`) and phoenix, legacy channels and those with
// postgres_changes, in browsers and in Node. It stands between the client and its websocket and reads their frames, as
// clients show their callbacks less than what arrives:
//
// - a join that goes out gets `resume: {}` (send me positions), or once a position is known `resume: { since }`;
// - each change that comes in moves the position of its topic, and so does the answer to a heartbeat;
// - the reply to a join says `recovered: false` where changes are missing for good: that is a gap.
//
// Servers that know no resume ignore the key: then nothing is replayed, and no gap is told.
// One file, no dependency. Copy it, or import it from the server.

/** A topic that is joined again so soon after it was left goes on where it was; later it begins anew. */
const FORGET_MS = 5_000

const CHANGES = new Set(['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', '*', 'postgres_changes'])

/**
 * A websocket class for a client's option `transport`. Make one for each client: it remembers where the topics are.
 *
 * @param {object} [options]
 * @param {(gap: {topic: string, since: string, position: string | null}) => void} [options.onGap]
 *   Changes of `topic` after `since` are missing and cannot be had any more; it goes on after `position`. Read again what
 *   the application shows. Without it a warning is written to the console.
 * @param {(resumed: {topic: string, since: string, replayed: number}) => void} [options.onResume]
 *   The topic is level again: `replayed` changes that were missed come now, before all newer ones.
 * @param {Record<string, string>} [options.positions]
 *   Where to begin, by topic: what `positions()` of an earlier life returned.
 * @param {typeof WebSocket} [options.transport]
 *   The class underneath; by default the WebSocket of the browser, or of Node 22 and newer.
 * @returns {typeof WebSocket & {positions(): Record<string, string>}}
 *   Its `positions()` is a copy of what is known now, by topic: opaque texts, to be kept for a later life.
 */
export function resuming({ onGap, onResume, positions = {}, transport = globalThis.WebSocket } = {}) {
  if (typeof transport !== 'function') {
    throw new TypeError(
      'there is no WebSocket here, so nothing could be sent; use Node 22 or newer, or pass a class: resuming({ transport })',
    )
  }
  const known = new Map(Object.entries(positions)) // topic -> the newest position that the client has been handed
  const left = new Map() // topic -> when it was left
  onGap ??= ({ topic, since }) => console.warn(`changes of ${topic} after ${since} are missing: read again what you show`)

  function ResumingWebSocket(...args) {
    const socket = new transport(...args)
    const traffic = new Traffic(known, left, onGap, onResume)
    const wrappers = new WeakMap()
    const wrapped = (handler) => {
      if (typeof handler !== 'function') return handler
      if (!wrappers.has(handler)) wrappers.set(handler, (event) => traffic.receive(event.data, () => handler.call(proxy, event)))
      return wrappers.get(handler)
    }
    // Native properties want the real socket as `this`: so all of them are read from it, and written to it.
    const methods = {
      send: (frame) => socket.send(traffic.send(frame)),
      addEventListener: (type, handler, ...more) =>
        socket.addEventListener(type, type === 'message' ? wrapped(handler) : handler, ...more),
      removeEventListener: (type, handler, ...more) =>
        socket.removeEventListener(type, type === 'message' ? wrapped(handler) : handler, ...more),
    }
    const proxy = new Proxy(socket, {
      get(_, name) {
        if (Object.hasOwn(methods, name)) return methods[name]
        const value = socket[name]
        return typeof value === 'function' && !String(name).startsWith('on') ? value.bind(socket) : value
      },
      set(_, name, value) {
        socket[name] = name === 'onmessage' ? wrapped(value) : value
        return true
      },
    })
    return proxy
  }
  for (const state of ['CONNECTING', 'OPEN', 'CLOSING', 'CLOSED']) ResumingWebSocket[state] = transport[state]
  ResumingWebSocket.positions = () => Object.fromEntries([...known].filter(([topic]) => !left.has(topic)))
  return ResumingWebSocket
}

/** What goes over one socket, as far as resuming is concerned. `known` and `left` outlive it. */
class Traffic {
  constructor(known, left, onGap, onResume) {
    this.known = known
    this.left = left
    this.onGap = onGap
    this.onResume = onResume
    this.joining = new Map() // ref of a join -> {topic, since}, until its reply
    this.joined = new Set() // topics that were asked to resume, and were answered ok on this socket
    this.seen = new Map() // topic -> the events that came at its newest position
  }

  /** A frame on its way out: as it is, or a join with `resume` in it. */
  send(frame) {
    if (typeof frame !== 'string' || !/"phx_(join|leave)"/.test(frame)) return frame
    const message = read(frame)
    if (message === null) return frame
    const { topic, event, payload, ref } = message
    if (event === 'phx_leave') {
      // Not forgotten yet: some of its changes are on their way, and many applications make a channel anew to mend it.
      // (A client that has waited too long for a join leaves as well, and joins again.)
      if (this.joined.delete(topic)) this.left.set(topic, Date.now())
    } else if (event === 'phx_join' && hearsChanges(payload)) {
      const since = this.#beginning(topic, payload)
      this.joined.delete(topic)
      this.joining.set(String(ref), { topic, since })
      return message.with({ ...payload, resume: since === undefined ? {} : { since } })
    }
    return frame
  }

  /** Where a join goes on, `undefined` if it begins. */
  #beginning(topic, payload) {
    const leftAt = this.left.get(topic)
    this.left.delete(topic)
    if (leftAt !== undefined && Date.now() - leftAt > FORGET_MS) this.known.delete(topic)
    // A client repeats the payload of its first join: what the application wrote there holds for a new channel only.
    const wanted = payload.resume?.since
    if (typeof wanted === 'string' && (leftAt !== undefined || !this.known.has(topic))) this.known.set(topic, wanted)
    return this.known.get(topic)
  }

  /** A frame on its way in: `deliver()` hands it to the client, unless that has had this change before. */
  receive(frame, deliver) {
    const message = typeof frame === 'string' && /"(position|have|recovered)"|"phx_/.test(frame) ? read(frame) : null
    if (message === null) return deliver()
    const { topic, event, payload } = message
    let afterwards = null
    if (CHANGES.has(event)) {
      const position = event === 'postgres_changes' ? payload?.data?.position : payload?.position
      if (typeof position === 'string' && !this.#isNew(topic, event, position)) return undefined
    } else if (event === 'phx_reply') {
      afterwards = this.#reply(message)
    } else if (event === 'phx_error' || event === 'phx_close') {
      this.joined.delete(topic) // what heartbeats say from now on does not hold for it
    }
    const result = deliver()
    // An error of the application is its own: it is neither swallowed nor does it stop the client.
    if (afterwards !== null) queueMicrotask(afterwards)
    return result
  }

  /** Move the topic on; false if the client has had this change, which is so when two joins of one topic overlapped. */
  #isNew(topic, event, position) {
    const known = this.known.get(topic)
    const order = known === undefined ? 1 : compare(position, known)
    if (order < 0) return false
    if (order > 0) {
      this.known.set(topic, position)
      this.seen.set(topic, new Set())
    }
    // BROADCAST_STAR_EVENT sends each change twice, under two names.
    const seen = this.seen.get(topic)
    if (seen === undefined || seen.has(event)) return false
    seen.add(event)
    return true
  }

  #reply({ topic, payload, ref }) {
    const { status, response } = payload ?? {}
    if (status !== 'ok' || response === null || typeof response !== 'object') return null
    if (topic === 'phoenix') {
      // All that is at or below it has been handed over, on every topic of this socket. Quiet topics move on by it.
      if (typeof response.have === 'string') for (const joined of this.joined) this.#moveTo(joined, response.have)
      return null
    }
    const join = this.joining.get(String(ref))
    if (join === undefined || join.topic !== topic) return null
    this.joining.delete(String(ref))
    const { recovered, replayed, position } = response
    if (typeof recovered !== 'boolean') return null // a server that knows no resume
    this.joined.add(topic)
    const { since } = join
    const isGap = !recovered && since !== undefined
    if (typeof position === 'string' && (isGap || !this.known.has(topic))) {
      this.known.set(topic, position)
      this.seen.delete(topic)
    } else if (typeof position === 'string' && since !== undefined && !replayed) {
      this.#moveTo(topic, position)
    } // else the changes that come now tell how far we are: the socket may be cut before the last of them
    if (isGap) return () => this.onGap({ topic, since, position: position ?? null })
    return since === undefined || !this.onResume ? null : () => this.onResume({ topic, since, replayed })
  }

  #moveTo(topic, position) {
    const known = this.known.get(topic)
    if (known !== undefined && compare(position, known) <= 0) return
    this.known.set(topic, position)
    this.seen.delete(topic)
  }
}

/** Whether a join asks for changes: a legacy one does, one with a `config` if it names bindings. */
function hearsChanges(payload) {
  if (payload === null || typeof payload !== 'object') return false
  const { config } = payload
  return config === undefined || config === null || (Array.isArray(config.postgres_changes) && config.postgres_changes.length > 0)
}

/** A text frame of protocol 1.0.0 (an object) or 2.0.0 (an array); null for anything else. */
function read(frame) {
  let value
  try {
    value = JSON.parse(frame)
  } catch {
    return null
  }
  if (Array.isArray(value)) {
    const [joinRef, ref, topic, event, payload] = value
    return { ref, topic, event, payload, with: (other) => JSON.stringify([joinRef, ref, topic, event, other]) }
  }
  if (value === null || typeof value !== 'object') return null
  const { ref, topic, event, payload } = value
  return { ref, topic, event, payload, with: (other) => JSON.stringify({ ...value, payload: other }) }
}

/**
 * The order of two positions, `epoch.commit.change.ordinal`, the first two numbers hexadecimal and the last decimal.
 * Those of different epochs have none that we could know: then the first, which came later, counts as the newer one.
 */
function compare(a, b) {
  const [epochOfA, ...numbersOfA] = a.split('.')
  const [epochOfB, ...numbersOfB] = b.split('.')
  if (epochOfA !== epochOfB) return 1
  for (const index of [0, 1, 2]) {
    // Without leading zeros, the longer number is the larger one.
    const [x, y] = [numbersOfA[index] ?? '', numbersOfB[index] ?? '']
    if (x !== y) return x.length - y.length || (x < y ? -1 : 1)
  }
  return 0
}
