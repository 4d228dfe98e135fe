/** A worker: N slots that share algorithms, stores and limits. */

import type { RetryRules, Settlement } from '../job/outcome.ts'
import type { StatusDocument } from '../job/result.ts'
import type { Stores } from '../publish.ts'
import type { Queue } from '../queue/queue.ts'
import type { Bus } from '../report/events.ts'
import type { Algorithm, Catalogue } from '../run/algorithm.ts'
import { Slot } from './slot.ts'

export interface WorkerOptions {
  /** stands in the documents and the log */
  readonly name: string
  readonly slots: number
  /** end after one job */
  readonly once: boolean
  readonly openQueue: () => Promise<Queue>
  readonly tubes: readonly string[]
  readonly stores: Stores
  readonly bus: Bus
  /** stands in the marks of its runs, by which they are found when the worker died */
  readonly workerId: string
  /** where run directories are made: a folder of this worker alone */
  readonly workBase: string
  readonly graceSeconds: number
  readonly drainSeconds: number
  readonly maxAttempts: number
  readonly retryRules: RetryRules
  readonly maxOutputBytes: number
  readonly maxScratchBytes: number
  /** PATH and the like for algorithms */
  readonly environment: Readonly<Record<string, string>>
  readonly catalogue: Catalogue
  /** rc values that an algorithm's manifest asks for; undefined when it asks for none */
  readonly settingsFor: (algorithm: Algorithm) => Record<string, unknown> | undefined
  readonly directoryOf: (uuid: string) => string
  readonly urlOf: (uuid: string) => string
}

/** What a slot sees of its worker. */
export interface SlotContext extends Omit<WorkerOptions, 'catalogue' | 'slots' | 'drainSeconds'> {
  readonly catalogue: () => Catalogue
  readonly unknownType: (type: string) => string
  /** uuid -> status of the jobs that are in hand; undefined until the run begins */
  readonly running: Map<string, StatusDocument | undefined>
  readonly onSettled: (settlement: Settlement) => void
}

export interface Worker {
  /** Settles when all slots have ended; never rejects. */
  readonly done: Promise<void>
  /** Takes no more jobs; what runs may finish within the drain time. */
  drain(cause: string): void
  /** Ends what runs and gives the jobs back. */
  interrupt(cause: string): void
  /** Uses other algorithms from the next job on. */
  replaceAlgorithms(catalogue: Catalogue): void
  /** Status of a job that is in hand here. */
  running(uuid: string): StatusDocument | undefined
  health(): Record<string, unknown>
  /** The last settlement, for `--once`. */
  lastSettlement(): Settlement | undefined
}

export function startWorker(options: WorkerOptions): Worker {
  const { bus } = options
  const running = new Map<string, StatusDocument | undefined>()
  const started = Date.now()
  const settled = { delete: 0, release: 0, bury: 0, none: 0 }
  let last: Settlement | undefined
  let catalogue = options.catalogue
  let draining = false
  let drainTimer: NodeJS.Timeout | undefined

  const context: SlotContext = {
    ...options,
    catalogue: () => catalogue,
    unknownType: (type) => whyUnknown(type, catalogue),
    running,
    onSettled: (settlement) => {
      settled[settlement.action]++
      last = settlement
    },
  }
  const slots = Array.from({ length: options.slots }, (_, i) => new Slot(context, i + 1))
  const done = Promise.all(slots.map((slot) => slot.done)).then(() => {
    clearTimeout(drainTimer)
    bus.emit({ event: 'worker_stopped', settled: settled.delete + settled.release + settled.bury })
  })

  const interrupt = (cause: string) => {
    bus.emit({ event: 'worker_interrupting', running: running.size, cause })
    for (const slot of slots) slot.interrupt()
  }

  return {
    done,
    drain(cause) {
      if (draining) return
      draining = true
      bus.emit({ event: 'worker_draining', running: running.size, drainSeconds: options.drainSeconds, cause })
      drainTimer = setTimeout(
        () => interrupt(`DRAIN_TIME of ${options.drainSeconds} s is over`),
        // setTimeout makes 1 ms of more than 24.8 days.
        Math.min(options.drainSeconds * 1000, 2 ** 31 - 1),
      )
      for (const slot of slots) slot.drain()
    },
    interrupt,
    replaceAlgorithms(next) {
      catalogue = next
    },
    running: (uuid) => running.get(uuid),
    health: () => ({
      status: draining ? 'draining' : slots.some((slot) => slot.state === 'connecting') ? 'connecting' : 'ok',
      worker: options.name,
      uptime_seconds: Math.round((Date.now() - started) / 1000),
      slots: { total: slots.length, idle: slots.filter((slot) => slot.state === 'idle').length, busy: running.size },
      jobs: { completed: settled.delete, released: settled.release, buried: settled.bury },
    }),
    lastSettlement: () => last,
  }
}

function whyUnknown(type: string, catalogue: Catalogue): string {
  const broken = catalogue.broken.get(type)
  if (broken !== undefined) return `algorithm ${type} cannot be run here: ${broken}`
  const known = [...catalogue.algorithms.keys()].sort()
  return `there is no algorithm ${type} here; there ${known.length === 1 ? 'is' : 'are'} ${known.join(', ')}; after installing it: SIGHUP to the worker, then kick the job`
}
