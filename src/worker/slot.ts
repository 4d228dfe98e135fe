/**
 * One seat of a worker: connect -> reserve -> attend to the job -> reserve ...
 *
 * The races that matter here:
 * - While `reserve` waits its connection does nothing else, so each slot has one of its own (to each server: source.ts).
 * - Draining (or going quiet) while `reserve` waits: the connection is closed, and a job that was on its way falls back
 *   to its tube.
 * - Draining between `reserve` and the job: it is released untouched.
 * - The next job is asked for while the deletion of the last one is on its way, if that left nothing to remove. Whatever
 *   comes in between closes the connection, and a job that was on its way falls back to its tube.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { type Queue, QueueError } from '../queue/queue.ts'
import { type Launcher, openLauncher } from '../run/launcher.ts'
import type { RunEnd } from '../run/run.ts'
import { openWarmSeats, type WarmSeats } from '../run/warm-seat.ts'
import { attendJob, type Doing } from './attend.ts'
import { type Hold, startHold } from './hold.ts'
import { Source, type Taken } from './source.ts'
import type { SlotContext } from './worker.ts'

const RECONNECT_MIN_MS = 100
const RECONNECT_MAX_MS = 10_000
/** After a fault of this machine, before the next job is taken. */
const FAULT_PAUSE_SECONDS = 1
/** How often a slot that may take no job shows that it is alive. */
const GATE_MS = 5_000

export type SlotState = 'connecting' | 'idle' | 'busy' | 'waiting' | 'ended'

export class Slot {
  readonly number: number
  /** Settles when the slot has ended; never rejects. */
  readonly done: Promise<void>
  /** performance.now() of the last sign of life */
  lastSeen = performance.now()
  #state: SlotState = 'connecting'
  readonly #context: SlotContext
  #source: Source | undefined
  /** of the job in hand */
  #queue: Queue | undefined
  #draining = false
  #interrupted = false
  #failures = 0
  #generation = 0
  #doing: Doing | undefined
  readonly #warm: WarmSeats
  readonly #wake = new AbortController()
  /** ends the run in hand */
  #run = new AbortController()
  #hold: Hold | undefined
  readonly #launcher: Launcher

  constructor(context: SlotContext, number: number) {
    this.#context = context
    this.number = number
    const { workshop, workerId } = context
    this.#launcher = openLauncher(workerId)
    this.#warm = openWarmSeats({ workshop, workerId, slot: number })
    this.done = this.#loop()
  }

  get state(): SlotState {
    return this.#state
  }

  /** What it does with the job in hand; undefined when it has none. */
  get doing(): Doing | undefined {
    return this.#state === 'busy' ? this.#doing : undefined
  }

  /** Takes no more jobs; the one in hand goes on. */
  drain(): void {
    this.#draining = true
    this.#wake.abort()
    this.leave()
  }

  /** Ends the run in hand and gives its job back. */
  interrupt(): void {
    this.#interrupted = true
    this.#hold?.abandon()
    this.#run.abort({ kind: 'interrupted' } satisfies RunEnd)
  }

  /** Comes back from where it waits for a job, and connects anew with what is configured then. */
  leave(): void {
    if (this.#state !== 'busy') this.#closeSource()
  }

  #closeSource(): void {
    this.#source?.close()
    this.#source = undefined
  }

  async #loop(): Promise<void> {
    // The worker that makes this slot is not ready to be told anything before its own turn ends.
    await undefined
    while (!this.#draining) {
      this.#showLife()
      this.#warm.renew(this.#context.generation)
      try {
        if (!this.#context.gate.isOpen) {
          await this.#standBy()
          continue
        }
        if (this.#isOutdated) this.leave()
        this.#source ??= this.#makeSource()
        const taken = await this.#source.take()
        if (taken === undefined) continue
        this.#state = 'busy'
        await this.#handle(taken)
        this.#state = 'idle'
        if (this.#context.once) this.#draining = true
      } catch (error) {
        await this.#recover(error)
      }
    }
    this.#closeSource()
    this.#launcher.close()
    await this.#warm.close()
    this.#state = 'ended'
  }

  get #isOutdated(): boolean {
    return this.#generation !== this.#context.generation
  }

  #makeSource(): Source {
    const { servers, tubes, watched, generation, gate, seatOf } = this.#context
    this.#generation = generation
    return new Source({
      ...{ servers, tubes, watched },
      seat: () => seatOf(this.number),
      mayTake: () => !this.#draining && gate.isOpen && !this.#isOutdated,
      onConnecting: () => {
        this.#state = 'connecting'
      },
      onConnected: () => {
        this.#state = 'idle'
        if (this.#failures > 0) this.#context.bus.emit({ event: 'broker_back', slot: this.number })
        this.#failures = 0
      },
    })
  }

  async #standBy(): Promise<void> {
    this.#state = 'waiting'
    this.#closeSource()
    await this.#context.gate.wait(GATE_MS, this.#wake.signal)
  }

  #showLife(): void {
    this.lastSeen = performance.now()
    this.#context.onAlive()
  }

  async #recover(error: unknown): Promise<void> {
    const isAsked = error instanceof QueueError && error.code === 'closed'
    this.#closeSource()
    if (!(error instanceof QueueError)) {
      const message = error instanceof Error ? error.message : String(error)
      this.#context.bus.emit({
        event: 'slot_fault',
        slot: this.number,
        error: message,
        retrySeconds: FAULT_PAUSE_SECONDS,
      })
      return this.#pause(FAULT_PAUSE_SECONDS * 1000)
    }
    // We closed it ourselves: to drain, to stand by, or to use another configuration.
    if (this.#draining || isAsked) return
    if (this.#failures++ === 0) {
      this.#context.bus.emit({ event: 'broker_lost', slot: this.number, error: error.message })
    }
    const wait = Math.min(RECONNECT_MIN_MS * 2 ** Math.min(this.#failures, 10), RECONNECT_MAX_MS)
    // Up to half less, at random: the slots of many workers must not come back all at once.
    await this.#pause(wait * (0.5 + Math.random() / 2))
  }

  async #pause(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.#wake.signal }).catch(() => undefined)
  }

  async #handle(taken: Taken): Promise<void> {
    const { reservation, queue } = taken
    if (this.#draining || !this.#context.gate.isOpen)
      return reservation.release({ priority: reservation.priority, delaySeconds: 0 })
    const run = new AbortController()
    this.#run = run
    const hold = this.#startHold(taken, run)
    this.#hold = hold
    this.#watchConnection(queue)
    if (this.#interrupted) this.interrupt()
    const doing: Doing = { uuid: undefined, type: undefined, step: 'reading it', since: new Date(), faults: 0 }
    this.#doing = doing
    try {
      const tools = { launcher: this.#launcher, warm: this.#warm }
      const hand = { context: this.#context, slot: this.number, reservation, hold, doing, ...tools }
      const onDeleting = () => this.#askAhead()
      const faulty = await attendJob({ ...hand, takenAt: performance.now(), signal: run.signal, onDeleting })
      if (faulty) await this.#pause(FAULT_PAUSE_SECONDS * 1000)
    } finally {
      hold.stop()
      this.#hold = undefined
    }
  }

  #askAhead(): void {
    if (!this.#context.once) this.#source?.askAhead()
  }

  /** Of the job in hand: every moment counts in which the broker may give it to another. */
  #watchConnection(queue: Queue): void {
    this.#queue = queue
    const hold = this.#hold
    void queue.closed.then(() => {
      if (this.#queue === queue && this.#hold === hold) hold?.onClosed()
    })
  }

  #startHold({ reservation, asked, reconnect }: Taken, run: AbortController): Hold {
    const { bus } = this.#context
    const subject = { slot: this.number, ticket: reservation.ticket }
    return startHold({
      reservation,
      asked,
      reconnect: async () => {
        this.#queue = undefined
        const queue = await reconnect()
        this.#watchConnection(queue)
        return queue
      },
      onLost: (detail) => {
        bus.emit({ event: 'reservation_lost', ...subject, error: detail })
        run.abort({ kind: 'lost', detail } satisfies RunEnd)
      },
      onBroken: (error) => bus.emit({ event: 'reservation_broken', ...subject, error }),
      onRegained: (seconds) => bus.emit({ event: 'reservation_regained', ...subject, seconds }),
      onTouched: () => this.#showLife(),
    })
  }
}
