/**
 * Carries what was published locally to S3: oldest first, with backoff, across restarts. What is to be carried stands in
 * the tracker's outbox, which all workers of a host share; each entry is taken by one of them at a time.
 *
 * While the bucket cannot be reached at all (`down`), one entry at a time is tried, the oldest, so that the order holds.
 * An entry that fails by itself waits by itself; others go on.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { copyToS3, type Stores } from './publish.ts'
import type { Bus } from './report/events.ts'
import { type OutboxEntry, type Tracker, TrackerError } from './tracker/tracker.ts'

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
}

const AT_ONCE = 4
/** A copy that takes longer may be made twice, of the same bytes. */
const LEASE_SECONDS = 600
const RETRY_SECONDS = 1
const RETRY_MAX_SECONDS = 60
/** How often entries of other workers are looked for, and the state is told. */
const LOOK_MS = 2_000
const POLL_MS = 100

export function startOutbox(options: OutboxOptions): OutboxCarrier {
  const { tracker, bus, owner } = options
  const halt = new AbortController()
  const waiting = new Map<string, Set<() => void>>()
  const carrying = new Set<Promise<void>>()
  let wakeUp = new AbortController()
  let downSince: number | undefined
  let error: string | undefined
  let state: OutboxState = { length: 0, oldest: null }
  let told = 0

  const done = loop()

  async function loop(): Promise<void> {
    while (!halt.signal.aborted) {
      const restMs = await step().catch((cause: unknown) => {
        if (!(cause instanceof TrackerError)) throw cause
        bus.emit({ event: 'outbox_failed', error: cause.message })
        return LOOK_MS
      })
      if (restMs > 0) await rest(restMs)
    }
    await Promise.all(carrying)
  }

  /** @returns milliseconds to rest before the next step */
  async function step(): Promise<number> {
    const atOnce = downSince === undefined ? AT_ONCE : 1
    if (carrying.size >= atOnce) {
      await Promise.race([...carrying, rest(LOOK_MS)])
      return 0
    }
    const entry = await tracker.outbox.take(owner, LEASE_SECONDS)
    if (entry !== undefined) {
      const carried = carry(entry).finally(() => carrying.delete(carried))
      carrying.add(carried)
      return 0
    }
    const dueInSeconds = await look()
    return Math.min(LOOK_MS, Math.max(POLL_MS, (dueInSeconds ?? Number.POSITIVE_INFINITY) * 1000))
  }

  async function look(): Promise<number | undefined> {
    const { length, oldest, dueInSeconds } = await tracker.outbox.state()
    state = { length, oldest: oldest ?? null, ...(error === undefined ? {} : { error }) }
    // While S3 is away, and once more when all is carried.
    const changed = length !== told && (length === 0 || downSince !== undefined)
    if (changed) {
      told = length
      bus.emit({ event: 'outbox_length', length, oldest: oldest ?? null })
    }
    return dueInSeconds
  }

  async function carry(entry: OutboxEntry): Promise<void> {
    try {
      const copied = await copyToS3(options.stores, entry.uuid, halt.signal)
      if (copied.kind === 'copied') {
        if (downSince !== undefined) bus.emit({ event: 'outbox_resumed', seconds: secondsSince(downSince) })
        downSince = undefined
        error = undefined
        await tracker.outbox.settle(entry, owner, { done: true })
        for (const resolve of waiting.get(entry.uuid) ?? []) resolve()
        return
      }
      if (!halt.signal.aborted) tell(entry, copied)
      const retryInSeconds = halt.signal.aborted ? 0 : backoff(entry.tries)
      await tracker.outbox.settle(entry, owner, { retryInSeconds, error: copied.error })
      await look()
    } catch (cause) {
      // Its lease runs out, and it is taken again.
      bus.emit({ event: 'outbox_failed', error: cause instanceof Error ? cause.message : String(cause) })
    }
  }

  function tell(entry: OutboxEntry, failure: { error: string; passing: boolean }): void {
    if (failure.passing && downSince === undefined) downSince = performance.now()
    error = failure.error
    bus.emit({ event: 'outbox_retry', uuid: entry.uuid, tries: entry.tries + 1, error: failure.error })
  }

  function rest(ms: number): Promise<void> {
    return sleep(ms, undefined, { signal: AbortSignal.any([wakeUp.signal, halt.signal]) }).catch(() => undefined)
  }

  function wake(): void {
    wakeUp.abort()
    wakeUp = new AbortController()
  }

  return {
    wake,
    async delivered(uuid, patienceMs, signal) {
      const from = Math.min(performance.now(), downSince ?? Number.POSITIVE_INFINITY)
      let deadline = from + patienceMs
      const listeners = waiting.get(uuid) ?? new Set()
      waiting.set(uuid, listeners)
      const carried = new AbortController()
      const resolve = () => carried.abort()
      listeners.add(resolve)
      try {
        // Another worker may have taken the entry: then only the tracker tells.
        for (;;) {
          if (!(await tracker.outbox.has(uuid))) return true
          if (signal.aborted || halt.signal.aborted || performance.now() >= deadline) return false
          const until = Math.min(5 * POLL_MS, deadline - performance.now())
          await sleep(until, undefined, { signal: AbortSignal.any([carried.signal, signal]) }).catch(() => undefined)
          if (downSince !== undefined) deadline = Math.min(deadline, downSince + patienceMs)
        }
      } finally {
        listeners.delete(resolve)
        if (listeners.size === 0) waiting.delete(uuid)
      }
    },
    state: () => ({ ...state, ...(error === undefined ? {} : { error }) }),
    async stop(graceMs) {
      const late = setTimeout(() => halt.abort(), graceMs)
      // What is there now is carried, if it can be; what comes later is the next worker's.
      while (!halt.signal.aborted && downSince === undefined && (await isAnyDue())) await sleep(POLL_MS)
      clearTimeout(late)
      halt.abort()
      wake()
      await done
      await tracker.outbox.giveBack(owner).catch(() => undefined)
    },
  }

  async function isAnyDue(): Promise<boolean> {
    if (carrying.size > 0) return true
    const { dueInSeconds } = await tracker.outbox.state().catch(() => ({ dueInSeconds: undefined }))
    return dueInSeconds !== undefined && dueInSeconds <= 0
  }
}

/** Doubled each time, with up to half less, at random, so that the workers of many hosts disperse. */
function backoff(tries: number): number {
  return Math.min(RETRY_SECONDS * 2 ** Math.min(tries, 10), RETRY_MAX_SECONDS) * (0.5 + Math.random() / 2)
}

function secondsSince(moment: number): number {
  return Math.round((performance.now() - moment) / 100) / 10
}
