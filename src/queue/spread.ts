/**
 * Several servers as one queue. Each numbers its jobs for itself: a ticket here is `number@server`, so that no two jobs of
 * an installation have the same.
 *
 * A producer's put goes to the first server that takes it, in the order that the job's key gives. What can go wrong:
 * - A server that drains or has no memory left says so: the job goes to the next one, and that server rests a little.
 * - A server is lost before it answered: it may have the job. It is put to the next one all the same, so that it may be
 *   on both: at least once, as everywhere here. Both have its uuid: what is complete is not run again.
 * - Answers of several servers come in any order: promises are settled in the order of the calls, as with one server.
 */

import {
  type JobCounts,
  openQueue,
  type PutOptions,
  type PutQueue,
  type Queue,
  QueueError,
  type Ticket,
  type TicketState,
} from './queue.ts'
import { rankServers, type Server } from './servers.ts'

/** Before a server that was lost, or that takes no jobs, is tried again. */
const REST_MS = 1_000
const REST_MAX_MS = 10_000

/** @throws QueueError `unreachable` */
export async function openNamed(server: Server): Promise<Queue> {
  return nameTickets(await openQueue(server.url), server.name)
}

function nameTickets(queue: Queue, server: string): Queue {
  const named = (ticket: Ticket) => `${ticket}@${server}`
  const bare = (ticket: Ticket) => {
    if (serverOf(ticket) === server) return ticket.slice(0, ticket.indexOf('@'))
    throw new QueueError('protocol', `ticket ${ticket} is none of ${server}`)
  }
  const nameReservation = (one: Awaited<ReturnType<Queue['reserve']>>) => one && { ...one, ticket: named(one.ticket) }
  return {
    maxBodyBytes: queue.maxBodyBytes,
    closed: queue.closed,
    put: async (body, options) => named(await queue.put(body, options)),
    putMany: async (bodies, options) =>
      (await queue.putMany(bodies, options)).map((answer) => (typeof answer === 'string' ? named(answer) : answer)),
    watch: (tubes) => queue.watch(tubes),
    reserve: async (timeoutSeconds) => nameReservation(await queue.reserve(timeoutSeconds)),
    reserveTicket: async (ticket) => nameReservation(await queue.reserveTicket(bare(ticket))),
    ticketState: async (ticket) => queue.ticketState(bare(ticket)),
    countJobs: (tube) => queue.countJobs(tube),
    close: () => queue.close(),
  }
}

function serverOf(ticket: Ticket): string {
  return ticket.slice(ticket.indexOf('@') + 1)
}

export interface SpreadOptions {
  /** two or more */
  readonly servers: readonly Server[]
  /** what the user should know of a server, one line; each once until that server takes jobs again */
  readonly tell: (message: string) => void
}

export interface Spread extends PutQueue {
  /**
   * Connects: to the server of a key, or to the next that can be reached; without a key to all.
   * @throws QueueError `unreachable` when none can be
   */
  open(key?: string): Promise<void>
}

/** Connects to nothing yet. */
export function makeSpread(options: SpreadOptions): Spread {
  return new SpreadQueue(options)
}

/** One server, as this producer knows it. */
interface Seat {
  readonly server: Server
  readonly name: string
  queue: Queue | undefined
  opening: Promise<Queue | undefined> | undefined
  /** why it could not be reached, last; empty before */
  obstacle: string
  /** as it said last; 0 before */
  maxBodyBytes: number
  /** performance.now(): not to be used before, if another takes the job */
  restUntil: number
  restMs: number
  /** puts that it has not answered */
  underWay: number
  told: 'nothing' | 'lost' | 'refused'
}

class SpreadQueue implements Spread {
  readonly #seats: readonly Seat[]
  readonly #tell: (message: string) => void
  /** one at least was reached: before that a failure tells all */
  #isOpen = false
  #isClosed = false
  /** settles with the put before */
  #last: Promise<unknown> = Promise.resolve()

  constructor({ servers, tell }: SpreadOptions) {
    this.#tell = tell
    this.#seats = servers.map((server) => ({
      ...{ server, name: server.name, queue: undefined, opening: undefined, obstacle: '' },
      ...{ maxBodyBytes: 0, restUntil: 0, restMs: REST_MS, underWay: 0, told: 'nothing' },
    }))
  }

  async open(key?: string): Promise<void> {
    if (key === undefined) await Promise.all(this.#seats.map((seat) => this.#connect(seat)))
    else for (const seat of rankServers(key, this.#seats)) if ((await this.#connect(seat)) !== undefined) break
    if (this.#seats.every(({ queue }) => queue === undefined)) {
      const reasons = this.#seats.map(({ obstacle }) => obstacle).join('; ')
      throw new QueueError('unreachable', `none of ${this.#seats.length} servers can be reached: ${reasons}`)
    }
    this.#isOpen = true
    for (const seat of this.#seats) if (seat.obstacle !== '') this.#tellUnreached(seat)
  }

  #tellUnreached(seat: Seat): void {
    this.#tellOnce(seat, 'lost', `${seat.obstacle}: its jobs go to the other servers`)
  }

  /** Of the server that takes the largest. */
  get maxBodyBytes(): number {
    return Math.max(...this.#seats.map((seat) => seat.maxBodyBytes))
  }

  put(body: Uint8Array, options: PutOptions): Promise<Ticket> {
    const work = this.#putSomewhere(body, options)
    const inTurn = this.#last.then(() => work)
    work.catch(() => undefined)
    this.#last = inTurn.catch(() => undefined)
    return inTurn
  }

  /** All that goes to one server goes together; what that does not take, job by job to the others. */
  async putMany(
    bodies: readonly string[],
    options: PutOptions,
    keys: readonly string[] = [],
  ): Promise<readonly (Ticket | QueueError)[]> {
    const groups = new Map<Seat | undefined, number[]>()
    for (const i of bodies.keys()) {
      const seat = rankServers(keys[i] ?? '', this.#seats).find((each) => this.#isReady(each))
      const places = groups.get(seat)
      if (places === undefined) groups.set(seat, [i])
      else places.push(i)
    }
    const answers: (Ticket | QueueError)[] = []
    const putGroup = async ([seat, places]: [Seat | undefined, number[]]) => {
      const taken =
        seat &&
        (await this.#putManyTo(
          seat,
          places.map((i) => bodies[i] ?? ''),
          options,
        ))
      const putOther = async (i: number, failure: QueueError | undefined) => {
        const failed = seat === undefined || failure === undefined ? [] : ([[seat, failure]] as const)
        const body = Buffer.from(bodies[i] ?? '')
        answers[i] = await this.#putSomewhere(body, { ...options, key: keys[i] ?? '' }, failed).catch(asQueueError)
      }
      const others = places.map((i, place) => {
        const answer = taken?.[place]
        if (typeof answer !== 'string') return putOther(i, answer)
        answers[i] = answer
        return undefined
      })
      await Promise.all(others)
    }
    await Promise.all([...groups].map(putGroup))
    return answers
  }

  async #putManyTo(
    seat: Seat,
    bodies: readonly string[],
    options: PutOptions,
  ): Promise<readonly (Ticket | QueueError)[]> {
    const { queue } = seat
    if (queue === undefined) return bodies.map(() => new QueueError('unreachable', seat.obstacle))
    seat.underWay += bodies.length
    const answers = await queue.putMany(bodies, options)
    const failed = answers.filter((answer) => typeof answer !== 'string')
    if (failed.length < answers.length) this.#tellTaking(seat)
    for (const error of failed) this.#note(seat, queue, error)
    seat.underWay -= bodies.length
    return answers
  }

  async #putSomewhere(
    body: Uint8Array,
    options: PutOptions,
    failed: readonly (readonly [Seat, QueueError])[] = [],
  ): Promise<Ticket> {
    const seats = rankServers(options.key ?? '', this.#seats)
    const failures = failed.map(([, error]) => error)
    const tried = new Set(failed.map(([seat]) => seat))
    // First those that are known to take jobs: a connection that is slow in coming must not hold up the others.
    for (const seat of seats) {
      if (tried.has(seat) || !this.#isReady(seat)) continue
      tried.add(seat)
      const answer = await this.#putTo(seat, body, options)
      if (typeof answer === 'string') return answer
      failures.push(answer)
    }
    for (const seat of seats) {
      if (tried.has(seat) || this.#isClosed) continue
      if ((await this.#connect(seat)) === undefined) continue
      const answer = await this.#putTo(seat, body, options)
      if (typeof answer === 'string') return answer
      failures.push(answer)
    }
    throw this.#makeFailure(failures)
  }

  /** One that is not reached is tried anew when it has rested, beside the puts to others. */
  #isReady(seat: Seat): boolean {
    if (performance.now() < seat.restUntil) return false
    if (seat.queue === undefined && !this.#isClosed) void this.#connect(seat)
    return seat.queue !== undefined
  }

  /** @returns the ticket, or why this server did not take the job */
  async #putTo(seat: Seat, body: Uint8Array, options: PutOptions): Promise<Ticket | QueueError> {
    const { queue } = seat
    if (queue === undefined) return new QueueError('unreachable', seat.obstacle)
    if (body.byteLength > queue.maxBodyBytes)
      return new QueueError('too_big', `${seat.name} takes jobs up to ${queue.maxBodyBytes} bytes`)
    seat.underWay++
    try {
      const ticket = await queue.put(body, options)
      this.#tellTaking(seat)
      return ticket
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      this.#note(seat, queue, error)
      return error
    } finally {
      seat.underWay--
    }
  }

  #tellTaking(seat: Seat): void {
    if (seat.told !== 'nothing') this.#tell(`${seat.name} takes jobs again`)
    seat.told = 'nothing'
    seat.restMs = REST_MS
  }

  #note(seat: Seat, queue: Queue, error: QueueError): void {
    if (error.code === 'refused') {
      this.#rest(seat)
      this.#tellOnce(seat, 'refused', `${error.message}: its jobs go to the other servers`)
    } else if (error.code !== 'too_big') this.#lose(seat, queue, error)
  }

  #lose(seat: Seat, queue: Queue, error: QueueError): void {
    if (seat.queue !== queue) return
    queue.close()
    seat.queue = undefined
    seat.obstacle = error.message
    if (this.#isClosed) return
    const count = seat.underWay
    const jobs = `${count} job${count === 1 ? '' : 's'} that it had not answered`
    this.#rest(seat)
    const where = 'its jobs go to the other servers'
    this.#tellOnce(seat, 'lost', `${error.message}: ${where}, also ${jobs}, and may be on both`)
  }

  /** Puts under way at once meet one obstacle. */
  #rest(seat: Seat): void {
    if (performance.now() < seat.restUntil) return
    seat.restUntil = performance.now() + seat.restMs
    seat.restMs = Math.min(seat.restMs * 2, REST_MAX_MS)
  }

  #tellOnce(seat: Seat, kind: Seat['told'], message: string): void {
    if (seat.told !== kind) this.#tell(message)
    seat.told = kind
  }

  #connect(seat: Seat, how?: 'silently'): Promise<Queue | undefined> {
    if (seat.queue !== undefined) return Promise.resolve(seat.queue)
    seat.opening ??= this.#connectOnce(seat, how).finally(() => {
      seat.opening = undefined
    })
    return seat.opening
  }

  async #connectOnce(seat: Seat, how: 'silently' | undefined): Promise<Queue | undefined> {
    try {
      const queue = await openNamed(seat.server)
      if (this.#isClosed) {
        queue.close()
        return undefined
      }
      seat.queue = queue
      seat.maxBodyBytes = queue.maxBodyBytes
      // A line that breaks while nothing is under way on it is told by the next try to open another.
      void queue.closed.then(() => {
        if (seat.queue === queue && seat.underWay === 0) seat.queue = undefined
      })
      return queue
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      seat.obstacle = error.message
      this.#rest(seat)
      if (this.#isOpen && how === undefined) this.#tellUnreached(seat)
      return undefined
    }
  }

  /** What became of a job that nobody took: in doubt, if one of them was lost with it; else it is nowhere. */
  #makeFailure(failures: readonly QueueError[]): QueueError {
    const inDoubt = failures.find(({ code }) => code !== 'refused' && code !== 'too_big' && code !== 'unreachable')
    if (inDoubt !== undefined) return inDoubt
    const tooBig = failures.find(({ code }) => code === 'too_big')
    if (tooBig !== undefined && failures.length === this.#seats.length) return tooBig
    const reasons = [...new Set([...failures.map(({ message }) => message), ...this.#lostOnes()])]
    return new QueueError('refused', `none of ${this.#seats.length} servers takes the job: ${reasons.join('; ')}`)
  }

  #lostOnes(): string[] {
    return this.#seats.filter(({ queue }) => queue === undefined).map(({ obstacle }) => obstacle)
  }

  async ticketState(ticket: Ticket): Promise<TicketState> {
    const seat = this.#seats.find(({ name }) => name === serverOf(ticket))
    if (seat === undefined) throw new QueueError('protocol', `ticket ${ticket} is of none of the servers`)
    // No job of ours is at stake: that the server cannot be asked is the caller's to tell.
    const queue = await this.#connect(seat, 'silently')
    if (queue === undefined) throw new QueueError('unreachable', seat.obstacle)
    return queue.ticketState(ticket)
  }

  /** Of all servers that can be asked. */
  async countJobs(tube: string): Promise<JobCounts> {
    const queues = await Promise.all(this.#seats.map((seat) => this.#connect(seat, 'silently')))
    const asked = queues.filter((queue) => queue !== undefined)
    if (asked.length === 0) throw new QueueError('unreachable', this.#lostOnes().join('; '))
    const counts = await Promise.all(asked.map((queue) => queue.countJobs(tube)))
    const sum = (state: keyof JobCounts) => counts.reduce((total, each) => total + each[state], 0)
    return { ready: sum('ready'), reserved: sum('reserved'), delayed: sum('delayed'), buried: sum('buried') }
  }

  close(): void {
    this.#isClosed = true
    for (const { queue } of this.#seats) queue?.close()
  }
}

function asQueueError(error: unknown): QueueError {
  if (error instanceof QueueError) return error
  throw error
}
