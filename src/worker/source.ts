/**
 * Where a slot takes its jobs from: one server, or several in turn.
 *
 * With several a slot has a connection to each. It asks them without waiting, one after the other, and begins behind the
 * one that gave it a job last: a server with many jobs keeps no slot from the others. When none has a job it waits a
 * second at one of them, slot by slot at another, so that a new job is taken at once where a slot waits, and within that
 * second wherever it was put. So fewer slots than servers serve them all, and no slot is idle while any server has jobs.
 */

import { type Queue, QueueError, type Reservation } from '../queue/queue.ts'
import { type Moment, thisMoment } from './hold.ts'
import type { QueueServer, Servers } from './servers.ts'

/** Each return shows that the broker is alive: a dead peer is noticed within this and the time that a reply may take. */
const RESERVE_SECONDS = 15
/** Where other servers may have jobs meanwhile. */
const STAY_SECONDS = 1
/** How often a slot shows that it is alive while no server can be reached. */
const NO_SERVER_MS = 5_000

/** A job, and where it is from. */
export interface Taken {
  readonly reservation: Reservation
  readonly queue: Queue
  /** right before the server was asked */
  readonly asked: Moment
  /** One try to connect to the same server again, whatever a reload names since. @throws QueueError */
  readonly reconnect: () => Promise<Queue>
}

export interface SourceOptions {
  /** at least one */
  readonly servers: readonly QueueServer[]
  readonly tubes: readonly string[]
  readonly watched: Servers
  /** which slot this is, from 0 on, and of how many */
  readonly seat: () => { readonly index: number; readonly count: number }
  /** asked right before each reservation */
  readonly mayTake: () => boolean
  readonly onConnecting: () => void
  readonly onConnected: () => void
}

export class Source {
  readonly #options: SourceOptions
  readonly #queues = new Map<QueueServer, Queue>()
  /** performance.now() when each of these was opened */
  readonly #opened = new WeakMap<Queue, number>()
  readonly #closing = new AbortController()
  /** index of the server that is asked first */
  #next = 0
  #stays = 0
  /** asked for before the job in hand was settled, and where */
  #ahead: { readonly queue: Queue; readonly taken: Promise<Taken | undefined> } | undefined

  constructor(options: SourceOptions) {
    this.#options = options
  }

  /**
   * Undefined when none came, or none may be taken.
   * @throws QueueError `closed` after `close`; with a single server when that is lost
   */
  async take(): Promise<Taken | undefined> {
    const { servers } = this.#options
    const [only, ...others] = servers
    if (only === undefined) throw new TypeError('a source has a server')
    return others.length === 0 ? this.#takeFromOne(only) : this.#takeFromAny(servers)
  }

  /**
   * Asks for the next job while the deletion of the one in hand is on its way: one trip to the broker in place of two.
   * Where there are several servers the other ones are asked first.
   */
  askAhead(): void {
    const [only, ...others] = this.#options.servers
    const queue = only && this.#queues.get(only)
    if (only === undefined || queue === undefined || others.length > 0) return
    const taken = this.#reserve(only, queue, RESERVE_SECONDS)
    // When its connection breaks nobody asks for it any more.
    taken.catch(() => undefined)
    this.#ahead = { queue, taken }
  }

  /** What waits for a job comes back. */
  close(): void {
    this.#closing.abort()
    for (const queue of this.#queues.values()) queue.close()
    this.#queues.clear()
  }

  async #takeFromOne(server: QueueServer): Promise<Taken | undefined> {
    if (!this.#queues.has(server)) this.#options.onConnecting()
    const queue = await this.#connect(server)
    this.#options.onConnected()
    const ahead = this.#ahead
    this.#ahead = undefined
    return ahead?.queue === queue ? ahead.taken : this.#reserve(server, queue, RESERVE_SECONDS)
  }

  async #takeFromAny(servers: readonly QueueServer[]): Promise<Taken | undefined> {
    const { watched } = this.#options
    const upFrom = (first: number) =>
      servers.map((_, i) => servers[(first + i) % servers.length] as QueueServer).filter((each) => watched.isUp(each))
    const up = upFrom(this.#next)
    if (up.length === 0) {
      this.#options.onConnecting()
      await watched.wait(NO_SERVER_MS, this.#closing.signal)
      return undefined
    }
    this.#options.onConnected()
    for (const server of up) {
      const taken = await this.#ask(server, 0)
      // What was taken is handed over in any case. A loss may have lasted, and a slot is to show that it is alive.
      if (taken !== undefined) return taken === 'lost' ? undefined : taken
      if (!this.#options.mayTake()) return undefined
    }
    const [place] = upFrom(this.#choosePlace(servers.length))
    const taken = place === undefined ? undefined : await this.#ask(place, STAY_SECONDS)
    return taken === 'lost' ? undefined : taken
  }

  /** A server of its own to wait at; where slots are fewer, each in turn. */
  #choosePlace(servers: number): number {
    const { index, count } = this.#options.seat()
    return count >= servers ? index : index + this.#stays++
  }

  async #ask(server: QueueServer, seconds: number): Promise<Taken | 'lost' | undefined> {
    const sinceMs = this.#openedMs(server)
    try {
      return await this.#reserve(server, await this.#connect(server), seconds)
    } catch (error) {
      if (!(error instanceof QueueError) || error.code === 'closed') throw error
      this.#drop(server)
      this.#options.watched.lost(server, error.message, sinceMs)
      return 'lost'
    }
  }

  /** Now, if there is no connection yet. */
  #openedMs(server: QueueServer): number {
    const queue = this.#queues.get(server)
    return (queue && this.#opened.get(queue)) ?? performance.now()
  }

  async #reserve(server: QueueServer, queue: Queue, seconds: number): Promise<Taken | undefined> {
    // Much may have been asked for while it connected.
    if (!this.#options.mayTake()) return undefined
    const asked = thisMoment()
    const reservation = await queue.reserve(seconds)
    if (reservation !== undefined) this.#next = this.#options.servers.indexOf(server) + 1
    return reservation && { reservation, queue, asked, reconnect: () => this.#reconnect(server) }
  }

  async #reconnect(server: QueueServer): Promise<Queue> {
    this.#drop(server)
    const sinceMs = performance.now()
    try {
      return await this.#connect(server)
    } catch (error) {
      if (error instanceof QueueError) this.#options.watched.lost(server, error.message, sinceMs)
      throw error
    }
  }

  async #connect(server: QueueServer): Promise<Queue> {
    const known = this.#queues.get(server)
    if (known !== undefined) return known
    const openedMs = performance.now()
    const queue = await openWatching(server, this.#options.tubes)
    if (this.#closing.signal.aborted) {
      queue.close()
      throw new QueueError('closed', `a connection to ${server.name} is not wanted any more`)
    }
    this.#queues.set(server, queue)
    this.#opened.set(queue, openedMs)
    if (this.#options.servers.length > 1) this.#forgetWhenClosed(server, queue)
    return queue
  }

  /** One that breaks while nothing is asked of it: its server may be back before it is used again. */
  #forgetWhenClosed(server: QueueServer, queue: Queue): void {
    void queue.closed.then(() => {
      if (this.#queues.get(server) === queue) this.#queues.delete(server)
    })
  }

  #drop(server: QueueServer): void {
    this.#queues.get(server)?.close()
    this.#queues.delete(server)
  }
}

async function openWatching(server: QueueServer, tubes: readonly string[]): Promise<Queue> {
  const queue = await server.open()
  try {
    await queue.watch(tubes)
    return queue
  } catch (error) {
    queue.close()
    throw error
  }
}
