/**
 * A reservation in the hands of a slot: kept alive while its job is worked on, and taken back when its connection breaks.
 *
 *     held --touch answered--> held
 *     held --NOT_FOUND--> lost
 *     held --connection broke--> regaining --reserve-job--> held
 *                                regaining --gone, another's, or 10 s over--> lost
 *
 * The races that matter here:
 * - When a connection closes, the broker gives the job to whoever waits. Workers that share our tracker see that the
 *   attempt is open and give the job back; so "reserved" is no reason to give up before the time is over.
 * - On a half-open connection the broker believes for a TTR that we hold the job: that looks the same.
 * - A broker that lost its jobs numbers new ones from 1: the ticket may name another job, which its body tells.
 * - Who is stopped while it waits for a job hears of the reservation when it goes on, however long that takes: its age is
 *   counted from the question.
 * - A settlement whose answer was lost may have been obeyed: then the ticket is gone, or is taken back and settled again.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { type Queue, QueueError, type Reservation } from '../queue/queue.ts'

/** By two clocks: one of them may stand still while a machine sleeps. */
export interface Moment {
  /** performance.now() */
  readonly ms: number
  /** Date.now() */
  readonly date: number
}

export interface Hold {
  /** as it was when it was made; its methods are this module's to call */
  readonly reservation: Reservation
  /** Whether the broker said a moment ago that it is ours: it is, without a question, as long as its connection is. */
  readonly isFresh: boolean
  /** Touches now. False when the reservation is no longer ours; while the broker is away this waits for it. */
  isOurs(): Promise<boolean>
  /** Tells the broker, again if the connection breaks meanwhile. False when there was nothing of ours left to settle. */
  settle(tell: (reservation: Reservation) => Promise<void>): Promise<boolean>
  /** The connection is gone: the reservation is taken back now, not when it is touched next. */
  onClosed(): void
  /** Gives up at once what is being taken back: the worker stops. */
  abandon(): void
  stop(): void
}

export interface HoldOptions {
  readonly reservation: Reservation
  /** right before the broker was asked for it */
  readonly asked: Moment
  /** one try to open another connection, for this slot from now on; throws QueueError */
  readonly reconnect: () => Promise<Queue>
  /** called at most once, when the reservation is no longer ours */
  readonly onLost: (detail: string) => void
  readonly onBroken: (error: string) => void
  readonly onRegained: (seconds: number) => void
  /** the broker answered */
  readonly onTouched: () => void
}

/** How long a run goes on whose connection is broken. */
export const REGAIN_SECONDS = 10

/** Touches at a third of the TTR: two may go wrong before the reservation is lost. */
const TOUCHES_PER_TTR = 3
/** A dead peer is to be noticed within 30 s: this, and the time that a reply may take. */
const MAX_INTERVAL_MS = 10_000
/** A reservation lasts one TTR, of a second at least, from when it was made or touched: from then, not from when we heard. */
const FRESH_MS = 100
/** A TTR of one second leaves no room for two touches that a busy machine delays. */
const MIN_INTERVAL_MS = 200
const REGAIN_PAUSE_MS = 50
const REGAIN_PAUSE_MAX_MS = 1_000
/** Connections that may break one after the other while one settlement is told. */
const SETTLE_TRIES = 5
/** Made once: an abort without a reason makes an exception, with a stack, for each job. */
const GIVEN_UP = new Error('given up')

export function thisMoment(): Moment {
  return { ms: performance.now(), date: Date.now() }
}

/** Starts to touch. */
export function startHold(options: HoldOptions): Hold {
  return new TouchingHold(options)
}

class TouchingHold implements Hold {
  readonly reservation: Reservation
  readonly #options: HoldOptions
  /** made when it is needed: most jobs never take anything back */
  #giveUp: AbortController | undefined
  #isGivenUp = false
  readonly #timer: NodeJS.Timeout
  #current: Reservation
  #asked: Moment
  #isLost = false
  #isBroken = false
  #touching: Promise<boolean> | undefined
  #regaining: Promise<boolean> | undefined

  constructor(options: HoldOptions) {
    this.#options = options
    this.reservation = options.reservation
    this.#current = options.reservation
    this.#asked = options.asked
    const { ttrSeconds } = options.reservation
    const interval = (ttrSeconds * 1000) / (TOUCHES_PER_TTR + (ttrSeconds <= 2 ? 2 : 0))
    const ms = Math.max(MIN_INTERVAL_MS, Math.min(interval, MAX_INTERVAL_MS))
    this.#timer = setInterval(() => void this.#touch(), ms)
    if (!this.isFresh) void this.#freshen()
  }

  // A touch that is under way was sent before the question and proves nothing: ask again after it.
  async isOurs(): Promise<boolean> {
    await this.#touching
    return this.#touch()
  }

  async settle(tell: (reservation: Reservation) => Promise<void>): Promise<boolean> {
    // A touch behind a settlement finds nothing, and would tell of a loss.
    clearInterval(this.#timer)
    for (let tries = 1; ; tries++) {
      await this.#touching
      if (this.#isLost) return false
      try {
        await tell(this.#current)
        return true
      } catch (error) {
        if (!(error instanceof QueueError)) throw error
        if (error.code === 'not_found') return this.#lose(error.message)
        if (tries >= SETTLE_TRIES) throw error
        if (!(await this.#regain(error))) return false
      }
    }
  }

  get isFresh(): boolean {
    const { ms, date } = this.#asked
    const isSoon = (age: number) => age >= 0 && age < FRESH_MS
    const isConnected = !this.#isBroken && !this.#isLost
    return isConnected && isSoon(performance.now() - ms) && isSoon(Date.now() - date)
  }

  onClosed(): void {
    this.#isBroken = true
    if (!this.#isGivenUp) void this.#touch()
  }

  abandon(): void {
    this.#isGivenUp = true
    this.#giveUp?.abort(GIVEN_UP)
  }

  stop(): void {
    clearInterval(this.#timer)
    this.abandon()
  }

  #lose(detail: string): false {
    if (!this.#isLost) {
      this.#isLost = true
      clearInterval(this.#timer)
      this.#options.onLost(`the reservation was lost: ${detail}`)
    }
    return false
  }

  /** It may have been made long ago: who waits for a job may be stopped while it comes. */
  async #freshen(): Promise<void> {
    const asked = thisMoment()
    if (await this.#touch()) this.#asked = asked
  }

  #touch(): Promise<boolean> {
    this.#touching ??= this.#touchOnce().finally(() => {
      this.#touching = undefined
    })
    return this.#touching
  }

  async #touchOnce(): Promise<boolean> {
    if (this.#isLost) return false
    try {
      await this.#current.touch()
      this.#options.onTouched()
      return true
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      return error.code === 'not_found' ? this.#lose(error.message) : this.#regain(error)
    }
  }

  #regain(cause: QueueError): Promise<boolean> {
    if (this.#isLost) return Promise.resolve(false)
    this.#regaining ??= this.#takeBack(cause).finally(() => {
      this.#regaining = undefined
    })
    return this.#regaining
  }

  async #takeBack(cause: QueueError): Promise<boolean> {
    const began = performance.now()
    this.#isBroken = true
    this.#options.onBroken(cause.message)
    this.#giveUp ??= new AbortController()
    if (this.#isGivenUp) this.#giveUp.abort(GIVEN_UP)
    const taken = await regainReservation(this.#options, began + REGAIN_SECONDS * 1000, this.#giveUp.signal)
    if (typeof taken === 'string') return this.#lose(taken)
    this.#current = taken
    this.#options.onRegained(Math.round(performance.now() - began) / 1000)
    return true
  }
}

/** @returns the reservation, or why it is lost */
async function regainReservation(
  { reservation, reconnect }: HoldOptions,
  deadline: number,
  giveUp: AbortSignal,
): Promise<Reservation | string> {
  let obstacle = 'the broker cannot be reached'
  let queue: Queue | undefined
  for (let pauseMs = REGAIN_PAUSE_MS; ; pauseMs = Math.min(pauseMs * 1.6, REGAIN_PAUSE_MAX_MS)) {
    if (giveUp.aborted) return `given up while the worker stops; ${obstacle}`
    try {
      queue ??= await reconnect()
      const taken = await queue.reserveTicket(reservation.ticket)
      if (taken !== undefined) {
        if (taken.body.equals(reservation.body) && taken.tube === reservation.tube) return taken
        await taken.release({ priority: taken.priority, delaySeconds: 0 })
        return `the broker gave ticket ${reservation.ticket} to another job: it was restarted without a binlog`
      }
      const state = await queue.ticketState(reservation.ticket)
      if (state === 'gone') return `ticket ${reservation.ticket} is no longer there`
      obstacle = `the broker says that ticket ${reservation.ticket} is reserved, by another worker or by the broken connection`
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      obstacle = error.message
      queue = undefined
    }
    if (performance.now() >= deadline) return `not taken back within ${REGAIN_SECONDS} s: ${obstacle}`
    // Up to half less, at random: the slots of many workers must not come back all at once.
    await sleep(pauseMs * (0.5 + Math.random() / 2), undefined, { signal: giveUp }).catch(() => undefined)
  }
}
