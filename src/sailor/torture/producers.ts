/** Producers under torture: they put what the plan says, by way of a proxy, and note exactly what they were told. */

import { setTimeout as sleep } from 'node:timers/promises'
import { openQueue, type Queue, QueueError, type Ticket } from '../../queue/queue.ts'
import { type PlannedJob, planJob } from './plan.ts'

export interface PutRecord {
  readonly answer: 'accepted' | 'unknown'
  readonly ticket: Ticket | undefined
}

export interface LedgerEntry {
  readonly job: PlannedJob
  readonly puts: PutRecord[]
}

/** What producers were told, by the job's id, in the order of the first put. */
export type Ledger = Map<string, LedgerEntry>

export interface ProducerOptions {
  readonly seed: number
  readonly brokerUrl: string
  readonly tube: string
  readonly jobsPerSecond: number
  /** no further jobs while the queue holds so many */
  readonly maxOpen: number
  readonly openCount: () => number
  readonly signal: AbortSignal
}

const PRODUCERS = 3
const PAUSE_MS = 200
/** Of the time that was lost to a fault so much is made up for. */
const MOST_ARREARS_MS = 8_000
/** A put whose answer was lost is repeated by a careful producer; not all are careful. */
const REPEATS_AFTER_LOSS = 2

export interface Producers {
  readonly ledger: Ledger
  /** Settles when all have stopped, after the signal. */
  readonly done: Promise<void>
}

export function startProducers(options: ProducerOptions): Producers {
  const ledger: Ledger = new Map()
  let next = 0
  const takeNumber = () => next++
  const done = Promise.all(Array.from({ length: PRODUCERS }, (_, i) => produce(options, ledger, takeNumber, i))).then(
    () => undefined,
  )
  return { ledger, done }
}

async function produce(
  options: ProducerOptions,
  ledger: Ledger,
  takeNumber: () => number,
  producer: number,
): Promise<void> {
  const { seed, signal, jobsPerSecond, maxOpen, openCount } = options
  const line = { queue: undefined as Queue | undefined }
  const intervalMs = (1000 * PRODUCERS) / jobsPerSecond
  let due = performance.now() + (intervalMs * producer) / PRODUCERS
  while (!signal.aborted) {
    const now = performance.now()
    if (now < due || openCount() >= maxOpen) {
      await pause(Math.min(Math.max(due - now, 20), PAUSE_MS), signal)
      continue
    }
    due = Math.max(due + intervalMs, now - MOST_ARREARS_MS)
    const job = planJob(seed, takeNumber())
    const entry: LedgerEntry = { job, puts: [] }
    for (let copy = 0; copy < job.copies && !signal.aborted; copy++) await put(options, ledger, entry, line)
  }
  line.queue?.close()
}

/** Puts until it is told that the broker has the job, or gives up after losses. */
async function put(
  options: ProducerOptions,
  ledger: Ledger,
  entry: LedgerEntry,
  line: { queue: Queue | undefined },
): Promise<void> {
  const { job } = entry
  const { ttrSeconds, delaySeconds, priority } = job
  for (let losses = 0; losses < REPEATS_AFTER_LOSS && !options.signal.aborted; ) {
    try {
      line.queue ??= await openQueue(options.brokerUrl)
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      await pause(PAUSE_MS, options.signal)
      continue
    }
    // From here on the job may be in the queue, whatever we hear of it.
    ledger.set(job.id, entry)
    try {
      const ticket = await line.queue.put(job.body, { tube: options.tube, ttrSeconds, delaySeconds, priority })
      entry.puts.push({ answer: 'accepted', ticket })
      return
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      entry.puts.push({ answer: 'unknown', ticket: undefined })
      line.queue.close()
      line.queue = undefined
      losses++
    }
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => undefined)
}
