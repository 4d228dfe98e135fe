/**
 * Carries what was published locally to S3: oldest first, with backoff, across restarts. What is to be carried stands in
 * the tracker's outbox, which all workers of a host share; each entry is taken by one of them at a time.
 *
 * While the bucket cannot be reached at all (`down`), one entry at a time is tried, in rounds of two with growing pauses:
 * the oldest, so that the order holds; then another, since the oldest may be what the bucket cannot take. When one of
 * them gets through, all go on. An entry that fails by itself waits by itself.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { copyToS3, type Stores } from './publish.ts'
import type { Bus } from './report/events.ts'
import type { OutboxEntry, Tracker } from './tracker/tracker.ts'

export interface OutboxState {
  readonly length: number
  /** ISO 8601; null when it is empty */
  readonly oldest: string | null
  /** what S3 answered last, while it cannot be reached */
  readonly error?: string
}

export interface OutboxCarrier {
  /** There is something new. */
  wake(): void
  /**
   * Waits until S3 has what is known of a job.
   * @param patienceMs counted from now, or from the beginning of an outage that lasts already
   * @returns false when the patience was over first, or the signal came: the outbox goes on
   */
  delivered(uuid: string, patienceMs: number, signal: AbortSignal): Promise<boolean>
  /** As it was at most some seconds ago. */
  state(): OutboxState
  /** Ends copies that are under way after `graceMs`. */
  stop(graceMs: number): Promise<void>
}

export interface OutboxOptions {
  readonly tracker: Tracker
  readonly stores: Stores
  readonly bus: Bus
  /** who takes entries */
  readonly owner: string
  /** Whether another that takes entries is still there. */
  readonly stateOf: (owner: string) => Promise<'alive' | 'dead' | 'unknown'>
}

const AT_ONCE = 4
/** A copy that takes longer may be made twice, of the same bytes. */
const LEASE_SECONDS = 600
const RETRY_SECONDS = 1
const RETRY_MAX_SECONDS = 60
/** After another one than the oldest has failed while S3 is away: the oldest is due by then, and comes first. */
const ROUND_MARGIN_MS = 500
/** How often entries of other workers are looked for, and the state is told. */
const LOOK_MS = 2_000
const POLL_MS = 100

export function startOutbox(options: OutboxOptions): OutboxCarrier {
  return new Carrier(options)
}

class Carrier implements OutboxCarrier {
  readonly #options: OutboxOptions
  readonly #tracker: Tracker
  readonly #halt = new AbortController()
  /** uuid -> who waits for its delivery */
  readonly #waiting = new Map<string, Set<() => void>>()
  readonly #carrying = new Set<Promise<void>>()
  readonly #done: Promise<void>
  #wakeUp = new AbortController()
  /** performance.now() since when S3 does not answer */
  #downSince: number | undefined
  /** performance.now() when the oldest is due again that failed while S3 was away */
  #oldestDue = 0
  /** performance.now() until when S3 is left alone */
  #pausedUntil = 0
  #error: string | undefined
  /** something that we took could not be settled: nobody carries it, and it is ours for the time of its lease */
  #hasDropped = false
  #state: OutboxState = { length: 0, oldest: null }
  #told = 0

  constructor(options: OutboxOptions) {
    this.#options = options
    this.#tracker = options.tracker
    this.#done = this.#loop()
  }

  wake(): void {
    this.#wakeUp.abort()
    this.#wakeUp = new AbortController()
  }

  async delivered(uuid: string, patienceMs: number, signal: AbortSignal): Promise<boolean> {
    const asked = performance.now()
    const deadline = () => Math.min(asked, this.#downSince ?? asked) + patienceMs
    const carried = new AbortController()
    const stopListening = this.#listen(uuid, () => carried.abort())
    try {
      // Another worker may have taken the entry: then only the tracker tells.
      for (;;) {
        if (!(await this.#tracker.outbox.has(uuid))) return true
        if (signal.aborted || this.#halt.signal.aborted || performance.now() >= deadline()) return false
        const pauseMs = Math.max(1, Math.min(LOOK_MS / 4, deadline() - performance.now()))
        await sleep(pauseMs, undefined, { signal: AbortSignal.any([carried.signal, signal]) }).catch(() => undefined)
      }
    } finally {
      stopListening()
    }
  }

  state(): OutboxState {
    return { ...this.#state, ...(this.#error === undefined ? {} : { error: this.#error }) }
  }

  async stop(graceMs: number): Promise<void> {
    const late = setTimeout(() => this.#halt.abort(), graceMs)
    // What is there now is carried, if it can be; what comes later is the next worker's.
    while (!this.#halt.signal.aborted && this.#downSince === undefined && (await this.#isAnyDue())) await sleep(POLL_MS)
    clearTimeout(late)
    this.#halt.abort()
    this.wake()
    await this.#done
    await this.#tracker.outbox.giveBack(this.#options.owner).catch(() => undefined)
  }

  async #isAnyDue(): Promise<boolean> {
    if (this.#carrying.size > 0) return true
    const { dueInSeconds } = await this.#tracker.outbox.state().catch(() => ({ dueInSeconds: undefined }))
    return dueInSeconds !== undefined && dueInSeconds <= 0
  }

  #listen(uuid: string, listener: () => void): () => void {
    const listeners = this.#waiting.get(uuid) ?? new Set()
    this.#waiting.set(uuid, listeners.add(listener))
    return () => {
      listeners.delete(listener)
      if (listeners.size === 0) this.#waiting.delete(uuid)
    }
  }

  async #loop(): Promise<void> {
    while (!this.#halt.signal.aborted) {
      const restMs = await this.#step().catch((error: unknown) => this.#tellFault(error))
      if (restMs > 0) await this.#rest(restMs)
    }
    await Promise.all(this.#carrying)
  }

  /** @returns milliseconds to rest before the next step */
  async #step(): Promise<number> {
    if (this.#hasDropped && this.#carrying.size === 0) await this.#takeUpDropped()
    const atOnce = this.#hasDropped ? 0 : this.#downSince === undefined ? AT_ONCE : 1
    if (this.#carrying.size >= atOnce) {
      await Promise.race([...this.#carrying, this.#rest(LOOK_MS)])
      return 0
    }
    if (this.#pausedUntil > performance.now()) {
      await this.#look()
      return Math.min(LOOK_MS, Math.max(1, this.#pausedUntil - performance.now()))
    }
    const entry = await this.#tracker.outbox.take(this.#options.owner, LEASE_SECONDS)
    if (entry !== undefined) {
      const carried = this.#carry(entry).finally(() => this.#carrying.delete(carried))
      this.#carrying.add(carried)
      return 0
    }
    const dueInSeconds = await this.#look()
    return Math.min(LOOK_MS, Math.max(POLL_MS, (dueInSeconds ?? Number.POSITIVE_INFINITY) * 1000))
  }

  /** A full disk takes no note of how a try ended. Called when nothing else that is ours is under way. */
  async #takeUpDropped(): Promise<void> {
    await this.#tracker.outbox.giveBack(this.#options.owner)
    this.#hasDropped = false
  }

  async #look(): Promise<number | undefined> {
    const { length, oldest = null, dueInSeconds, owners } = await this.#tracker.outbox.state()
    for (const owner of owners) await this.#freeEntriesOf(owner)
    this.#state = { length, oldest }
    // While S3 is away, and once more when all is carried.
    if (length !== this.#told && (this.#downSince !== undefined || (length === 0 && this.#told > 0))) {
      this.#told = length
      this.#options.bus.emit({ event: 'outbox_length', length, oldest })
    }
    return dueInSeconds
  }

  /** Who was killed gives nothing back, nor can who ends while the disk is full. */
  async #freeEntriesOf(owner: string): Promise<void> {
    const { owner: own, stateOf } = this.#options
    if (owner !== own && (await stateOf(owner)) === 'dead') await this.#tracker.outbox.giveBack(owner)
  }

  async #carry(entry: OutboxEntry): Promise<void> {
    const { owner, stores } = this.#options
    try {
      const copied = await copyToS3(stores, entry.uuid, this.#halt.signal)
      if (copied.kind === 'copied') {
        this.#showUp()
        await this.#tracker.outbox.settle(entry, owner, { done: true })
        for (const resolve of this.#waiting.get(entry.uuid) ?? []) resolve()
        return
      }
      const isHalted = this.#halt.signal.aborted
      if (!isHalted) this.#tellFailure(entry, copied)
      const retryInSeconds = isHalted ? 0 : backoff(entry.tries)
      if (copied.passing) await this.#endTry(entry, retryInSeconds)
      await this.#tracker.outbox.settle(entry, owner, { retryInSeconds, error: copied.error })
      await this.#look()
    } catch (error) {
      this.#hasDropped = true
      this.#tellFault(error)
    }
  }

  /** After the oldest another one is tried at once; after that one follows a pause. */
  async #endTry(entry: OutboxEntry, retryInSeconds: number): Promise<void> {
    const now = performance.now()
    const { oldest } = await this.#tracker.outbox.state()
    if (entry.since === oldest) this.#oldestDue = now + retryInSeconds * 1000
    else this.#pausedUntil = Math.max(this.#oldestDue, now) + ROUND_MARGIN_MS
  }

  #showUp(): void {
    if (this.#downSince !== undefined) {
      const seconds = Math.round((performance.now() - this.#downSince) / 100) / 10
      this.#options.bus.emit({ event: 'outbox_resumed', seconds })
    }
    this.#downSince = undefined
    this.#pausedUntil = 0
    this.#error = undefined
  }

  #tellFailure(entry: OutboxEntry, { error, passing }: { error: string; passing: boolean }): void {
    if (passing) this.#downSince ??= performance.now()
    this.#error = error
    this.#options.bus.emit({ event: 'outbox_retry', uuid: entry.uuid, tries: entry.tries + 1, error })
  }

  #tellFault(error: unknown): number {
    this.#options.bus.emit({ event: 'outbox_failed', error: error instanceof Error ? error.message : String(error) })
    return LOOK_MS
  }

  #rest(ms: number): Promise<void> {
    return sleep(ms, undefined, { signal: AbortSignal.any([this.#wakeUp.signal, this.#halt.signal]) }).catch(
      () => undefined,
    )
  }
}

/** Doubled each time, with up to half less, at random, so that the workers of many hosts disperse. */
function backoff(tries: number): number {
  return Math.min(RETRY_SECONDS * 2 ** Math.min(tries, 10), RETRY_MAX_SECONDS) * (0.5 + Math.random() / 2)
}
