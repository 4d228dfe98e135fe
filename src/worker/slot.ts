/**
 * One seat of a worker: connect -> reserve -> attend to the job -> reserve ...
 *
 * The races that matter here:
 * - While `reserve` waits its connection does nothing else, so each slot has one of its own.
 * - Draining while `reserve` waits: the connection is closed, and a job that was on its way falls back to its tube.
 * - Draining between `reserve` and the job: it is released untouched.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { type Queue, QueueError, type Reservation } from '../queue/queue.ts'
import type { RunEnd } from '../run/run.ts'
import { attendJob } from './attend.ts'
import { startHeartbeat } from './heartbeat.ts'
import type { SlotContext } from './worker.ts'

/** A reserve that waits longer proves nothing; each return shows that the broker is alive. */
const RESERVE_SECONDS = 20
const RECONNECT_MIN_MS = 100
const RECONNECT_MAX_MS = 10_000
/** After a fault of this machine (a full disk), before the next job is taken. */
const FAULT_PAUSE_SECONDS = 1

export class Slot {
  readonly number: number
  /** Settles when the slot has ended; never rejects. */
  readonly done: Promise<void>
  #state: 'connecting' | 'idle' | 'busy' | 'ended' = 'connecting'
  readonly #context: SlotContext
  #queue: Queue | undefined
  #draining = false
  #interrupted = false
  #failures = 0
  readonly #wake = new AbortController()
  /** ends the run in hand */
  #run = new AbortController()

  constructor(context: SlotContext, number: number) {
    this.#context = context
    this.number = number
    this.done = this.#loop()
  }

  get state(): 'connecting' | 'idle' | 'busy' | 'ended' {
    return this.#state
  }

  /** Takes no more jobs; the one in hand goes on. */
  drain(): void {
    this.#draining = true
    this.#wake.abort()
    if (this.#state !== 'busy') this.#queue?.close()
  }

  /** Ends the run in hand and gives its job back. */
  interrupt(): void {
    this.#interrupted = true
    this.#run.abort({ kind: 'interrupted' } satisfies RunEnd)
  }

  async #loop(): Promise<void> {
    while (!this.#draining) {
      try {
        this.#queue ??= await this.#connect()
        this.#state = 'idle'
        const reservation = this.#draining ? undefined : await this.#queue.reserve(RESERVE_SECONDS)
        if (reservation === undefined) continue
        this.#state = 'busy'
        await this.#handle(reservation)
        if (this.#context.once) this.#draining = true
      } catch (error) {
        await this.#recover(error)
      }
    }
    this.#queue?.close()
    this.#state = 'ended'
  }

  async #connect(): Promise<Queue> {
    this.#state = 'connecting'
    const queue = await this.#context.openQueue()
    try {
      await queue.watch(this.#context.tubes)
    } catch (error) {
      queue.close()
      throw error
    }
    if (this.#failures > 0) this.#context.bus.emit({ event: 'broker_back', slot: this.number })
    this.#failures = 0
    return queue
  }

  async #recover(error: unknown): Promise<void> {
    this.#queue?.close()
    this.#queue = undefined
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
    if (this.#draining) return
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

  async #handle(reservation: Reservation): Promise<void> {
    if (this.#draining) return reservation.release({ priority: reservation.priority, delaySeconds: 0 })
    const run = new AbortController()
    this.#run = run
    if (this.#interrupted) this.interrupt()
    const heartbeat = startHeartbeat(reservation, (detail) => run.abort({ kind: 'lost', detail } satisfies RunEnd))
    try {
      const faulty = await attendJob({
        context: this.#context,
        slot: this.number,
        reservation,
        heartbeat,
        signal: run.signal,
        reservedAt: performance.now(),
      })
      if (faulty) await this.#pause(FAULT_PAUSE_SECONDS * 1000)
    } finally {
      heartbeat.stop()
    }
  }
}
