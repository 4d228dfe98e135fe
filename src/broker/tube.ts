/** A tube, and a client as the tubes see it: what it uses, watches, holds and waits for. */

import { Heap } from './heap.ts'
import { isDueBefore, isMoreUrgent, type Job, JobList } from './job.ts'

/** Jobs of a priority below this count as urgent. */
export const URGENT_BELOW = 1024

export class Tube {
  readonly name: string
  readonly ready = new Heap<Job>(isMoreUrgent)
  readonly delayed = new Heap<Job>(isDueBefore)
  readonly buried = new JobList()
  readonly waiting = new WaitingClients()
  urgent = 0
  reserved = 0
  totalJobs = 0
  deletes = 0
  pauses = 0
  using = 0
  watching = 0
  /** jobs, users and watchers; a tube that has none of them is forgotten */
  references = 0
  /** as it was asked for; 0 while the tube is not paused */
  pauseSeconds = 0
  /** Infinity while the tube is not paused */
  pausedUntil = Number.POSITIVE_INFINITY
  /** in the list of all tubes */
  index = -1
  /** when something is to be done in it, see Tubes */
  wakeAt = Number.POSITIVE_INFINITY
  position = -1

  constructor(name: string) {
    this.name = name
  }

  get isPaused(): boolean {
    return this.pausedUntil !== Number.POSITIVE_INFINITY
  }
}

/** One connection. */
export class Client {
  used: Tube
  /** in beanstalkd's order: the last one takes the place of one that is ignored */
  readonly watched: Tube[]
  readonly reserved = new JobList()
  readonly deadlines = new Heap<Job>(isDueBefore)
  /** the job whose body it is sending */
  coming: Job | undefined = undefined
  isProducer = false
  isWorker = false
  isWaiting = false
  /** Infinity: for ever */
  waitsUntil = Number.POSITIVE_INFINITY
  /** when something is to be done for it, see Tubes */
  wakeAt = Number.POSITIVE_INFINITY
  position = -1

  constructor(tube: Tube) {
    this.used = tube
    this.watched = [tube]
  }
}

/**
 * Clients that wait for a job of one tube. The order in which they are served is beanstalkd's: a mark moves on by one
 * with each client that is served, and the last client takes the place of one that leaves. That is nearly, not wholly,
 * first come first served.
 */
export class WaitingClients {
  readonly #clients: Client[] = []
  readonly #places = new Map<Client, number>()
  #mark = 0

  get size(): number {
    return this.#clients.length
  }

  add(client: Client): void {
    this.#places.set(client, this.#clients.length)
    this.#clients.push(client)
  }

  remove(client: Client): void {
    const place = this.#places.get(client)
    if (place === undefined) return
    this.#places.delete(client)
    const last = this.#clients.pop() as Client
    if (last === client) return
    this.#clients[place] = last
    this.#places.set(last, place)
  }

  /** The client that is to be served next, taken out. */
  take(): Client | undefined {
    if (this.#clients.length === 0) return undefined
    const place = this.#mark % this.#clients.length
    this.#mark = place + 1
    const client = this.#clients[place] as Client
    this.remove(client)
    return client
  }
}
