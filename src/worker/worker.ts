/** A worker: N slots that share algorithms, stores, tracker and limits. */

import type { RetryRules, Settlement } from '../job/outcome.ts'
import type { StatusDocument } from '../job/result.ts'
import type { OutboxCarrier } from '../outbox.ts'
import type { Stores } from '../publish.ts'
import type { Bus } from '../report/events.ts'
import { didYouMean } from '../report/suggestion.ts'
import type { Algorithm, Catalogue } from '../run/algorithm.ts'
import type { Groups } from '../run/cgroup.ts'
import { Spares } from '../run/workdir.ts'
import type { Tracker } from '../tracker/tracker.ts'
import { type Gate, makeGate } from './gate.ts'
import type { Recovery } from './recovery.ts'
import { type QueueServer, type Servers, watchServers } from './servers.ts'
import { Slot } from './slot.ts'

/** What a reload may change while jobs run; it holds from the next job on. */
export interface WorkerSettings {
  readonly slots: number
  /** that jobs are taken from; one, as a rule */
  readonly servers: readonly QueueServer[]
  readonly tubes: readonly string[]
  readonly graceSeconds: number
  readonly drainSeconds: number
  readonly maxAttempts: number
  readonly retryRules: RetryRules
  readonly maxOutputBytes: number
  readonly maxScratchBytes: number
  readonly s3PatienceSeconds: number
  readonly catalogue: Catalogue
  /** rc values that an algorithm's manifest asks for; undefined when it asks for none */
  readonly settingsFor: (algorithm: Algorithm) => Record<string, unknown> | undefined
  readonly urlOf: (uuid: string) => string
}

export interface WorkerOptions extends WorkerSettings {
  /** stands in the documents and the log */
  readonly name: string
  /** in the tracker, and in the mark of each run */
  readonly workerId: string
  /** where run directories are made */
  readonly workshop: string
  /** where runs have control groups */
  readonly groups: Groups | undefined
  /** what /healthz says of them */
  readonly cgroup: Readonly<Record<string, unknown>>
  /** end after one job */
  readonly once: boolean
  readonly stores: Stores
  readonly tracker: Tracker
  readonly recovery: Recovery
  /** undefined without a bucket */
  readonly outbox: OutboxCarrier | undefined
  readonly bus: Bus
  /** PATH and the like for algorithms */
  readonly environment: Readonly<Record<string, string>>
  readonly directoryOf: (uuid: string) => string
  /** Tells what keeps this machine from doing its part, one line each; nothing when it can. */
  readonly probe: () => Promise<readonly string[]>
  /** Called while every slot shows life. */
  readonly onAlive: () => void
}

/** What a slot sees of its worker. */
export interface SlotContext extends Omit<WorkerOptions, 'catalogue' | 'slots' | 'drainSeconds' | 'probe'> {
  readonly catalogue: () => Catalogue
  readonly unknownType: (type: string) => string
  readonly gate: Gate
  readonly watched: Servers
  /** the place of a slot among all that there are */
  readonly seatOf: (slot: number) => { readonly index: number; readonly count: number }
  /** grows with each reload: an older connection may go to another broker, or watch other tubes */
  readonly generation: number
  /** emptied directories of ended runs, for later ones */
  readonly spares: Spares
  /** uuid -> status of the jobs that are in hand; undefined until the run begins */
  readonly running: Map<string, StatusDocument | undefined>
  readonly onSettled: (settlement: Settlement) => void
  /** Something failed: is it this machine, so that no job may be taken? */
  readonly isMachineAtFault: (detail: string) => Promise<boolean>
}

/** What a slot is doing. */
export interface SlotReport {
  readonly slot: number
  readonly state: string
  readonly uuid?: string | undefined
  readonly type?: string | undefined
  readonly step?: string
  readonly seconds?: number
}

export interface Worker {
  /** Settles when all slots have ended; never rejects. */
  readonly done: Promise<void>
  /** Takes no more jobs; what runs may finish within the drain time. */
  drain(cause: string): void
  /** Ends what runs and gives the jobs back. */
  interrupt(cause: string): void
  /** Takes no more jobs until `resume`. */
  quiet(cause: string): void
  resume(cause: string): void
  /** Uses other settings from the next job on. */
  reload(settings: WorkerSettings): void
  slots(): SlotReport[]
  /** Status of a job that is in hand here. */
  running(uuid: string): StatusDocument | undefined
  health(): Record<string, unknown>
  /** The last settlement, for `--once`. */
  lastSettlement(): Settlement | undefined
}

/** A slot that showed no life for this long hangs: nothing that it waits for takes longer. */
const HUNG_MS = 60_000
const PROBE_MS = 1_000
const PROBE_MAX_MS = 10_000

export function startWorker(options: WorkerOptions): Worker {
  return new RunningWorker(options)
}

class RunningWorker implements Worker {
  readonly done: Promise<void>
  readonly #options: WorkerOptions
  readonly #context: SlotContext
  readonly #running = new Map<string, StatusDocument | undefined>()
  readonly #started = Date.now()
  readonly #settled = { delete: 0, release: 0, bury: 0, none: 0 }
  readonly #gate: Gate
  readonly #spares: Spares
  readonly #watched: Servers
  #slots: Slot[] = []
  #lastNumber = 0
  #settings: WorkerSettings
  #last: Settlement | undefined
  #draining = false
  #drainTimer: NodeJS.Timeout | undefined
  #probing: Promise<boolean> | undefined
  #finish: () => void = () => undefined

  constructor(options: WorkerOptions) {
    this.#options = options
    this.#settings = options
    this.#spares = new Spares(options.workshop)
    this.#gate = makeGate(() => {
      for (const slot of this.#slots) slot.leave()
    })
    this.#watched = watchServers(options.servers, options.bus)
    this.#context = this.#makeContext(0)
    this.done = new Promise((resolve) => {
      this.#finish = resolve
    })
    this.#setSlots(options.slots)
  }

  #makeContext(generation: number): SlotContext {
    return {
      ...this.#options,
      ...this.#settings,
      catalogue: () => this.#settings.catalogue,
      unknownType: (type) => whyUnknown(type, this.#settings.catalogue),
      gate: this.#gate,
      watched: this.#watched,
      seatOf: (number) => ({
        index: Math.max(
          0,
          this.#slots.findIndex((slot) => slot.number === number),
        ),
        count: this.#slots.length,
      }),
      generation,
      spares: this.#spares,
      running: this.#running,
      onSettled: (settlement) => {
        this.#settled[settlement.action]++
        this.#last = settlement
      },
      isMachineAtFault: (detail) => this.#checkMachine(detail),
      onAlive: () => this.#showLife(),
    }
  }

  /** New slots are added, surplus ones end after the job in hand; until then they count. */
  #setSlots(wanted: number): void {
    for (const slot of this.#slots.slice(wanted)) slot.drain()
    while (this.#slots.length < wanted) {
      const slot = new Slot(this.#context, ++this.#lastNumber)
      this.#slots.push(slot)
      void slot.done.then(() => this.#onEnded(slot))
    }
  }

  #onEnded(slot: Slot): void {
    this.#slots = this.#slots.filter((each) => each !== slot)
    // It was surplus when it was told to end; since then more may have been asked for.
    if (!this.#draining && !this.#options.once) this.#setSlots(this.#settings.slots)
    if (this.#slots.length > 0) return
    clearTimeout(this.#drainTimer)
    this.#watched.stop()
    const { delete: completed, release, bury } = this.#settled
    this.#options.bus.emit({ event: 'worker_stopped', settled: completed + release + bury })
    this.#finish()
  }

  /** Not from a timer: a worker of which one slot hangs is not alive. */
  #showLife(): void {
    const now = performance.now()
    if (this.#slots.every((slot) => now - slot.lastSeen < HUNG_MS)) this.#options.onAlive()
  }

  /** Where the machine is at fault for all jobs, none is taken until it is mended. */
  #checkMachine(detail: string): Promise<boolean> {
    this.#probing ??= this.#probe(detail).finally(() => {
      this.#probing = undefined
    })
    return this.#probing
  }

  async #probe(detail: string): Promise<boolean> {
    const [problem] = await this.#findProblems()
    if (problem === undefined) return false
    if (this.#draining || this.#gate.has('fault')) return true
    this.#gate.close('fault', problem)
    this.#options.bus.emit({ event: 'worker_paused', reason: problem, cause: detail })
    void this.#awaitMending()
    return true
  }

  async #awaitMending(): Promise<void> {
    const began = performance.now()
    const never = new AbortController().signal
    for (let ms = PROBE_MS; !this.#draining; ms = Math.min(ms * 2, PROBE_MAX_MS)) {
      await this.#gate.wait(ms, never)
      if ((await this.#findProblems()).length === 0) break
    }
    if (this.#draining) return
    this.#gate.clear('fault')
    if (this.#gate.has('quiet')) return this.#emitQuiet('what paused the worker is over')
    const seconds = Math.round((performance.now() - began) / 100) / 10
    this.#options.bus.emit({ event: 'worker_resumed', seconds, cause: 'the cause is gone' })
  }

  /** A question that fails is a problem too. */
  async #findProblems(): Promise<readonly string[]> {
    return this.#options.probe().catch((error: unknown) => [error instanceof Error ? error.message : String(error)])
  }

  drain(cause: string): void {
    if (this.#draining) return
    this.#draining = true
    const { drainSeconds } = this.#settings
    this.#options.bus.emit({ event: 'worker_draining', running: this.#running.size, drainSeconds, cause })
    this.#drainTimer = setTimeout(
      () => this.interrupt(`DRAIN_TIME of ${drainSeconds} s is over`),
      // setTimeout makes 1 ms of more than 24.8 days.
      Math.min(drainSeconds * 1000, 2 ** 31 - 1),
    )
    for (const slot of this.#slots) slot.drain()
  }

  interrupt(cause: string): void {
    this.#options.bus.emit({ event: 'worker_interrupting', running: this.#running.size, cause })
    for (const slot of this.#slots) slot.interrupt()
  }

  quiet(cause: string): void {
    if (this.#draining) return
    this.#gate.close('quiet', `quiet since ${new Date().toISOString()} (${cause})`)
    this.#emitQuiet(cause)
  }

  #emitQuiet(cause: string): void {
    this.#options.bus.emit({ event: 'worker_quiet', running: this.#running.size, cause })
  }

  resume(cause: string): void {
    if (this.#draining || !this.#gate.has('quiet')) return
    this.#gate.clear('quiet')
    const { reason } = this.#gate
    if (reason === undefined) this.#options.bus.emit({ event: 'worker_resumed', seconds: null, cause })
    else this.#options.bus.emit({ event: 'worker_paused', reason, cause })
  }

  reload(settings: WorkerSettings): void {
    this.#settings = settings
    this.#watched.use(settings.servers)
    // Slots hold the context itself: what they read from it next is new.
    Object.assign(this.#context, this.#makeContext(this.#context.generation + 1))
    if (this.#draining) return
    for (const slot of this.#slots) slot.leave()
    this.#setSlots(settings.slots)
  }

  slots(): SlotReport[] {
    return this.#slots.map((slot) => {
      const { doing } = slot
      if (doing === undefined) return { slot: slot.number, state: slot.state }
      const seconds = Math.round((Date.now() - doing.since.getTime()) / 100) / 10
      const { uuid, type, step } = doing
      return { slot: slot.number, state: slot.state, uuid, type, step, seconds }
    })
  }

  running(uuid: string): StatusDocument | undefined {
    return this.#running.get(uuid)
  }

  health(): Record<string, unknown> {
    const { reason } = this.#gate
    const outbox = this.#options.outbox?.state()
    const servers = this.#watched.report()
    return {
      status: this.#statusWord(),
      ...(reason === undefined ? {} : { reason }),
      worker: this.#options.name,
      uptime_seconds: Math.round((Date.now() - this.#started) / 1000),
      slots: {
        total: this.#slots.length,
        idle: this.#slots.filter((slot) => slot.state === 'idle').length,
        busy: this.#running.size,
      },
      ...(servers.length === 0 ? {} : { servers }),
      cgroup: this.#options.cgroup,
      jobs: { completed: this.#settled.delete, released: this.#settled.release, buried: this.#settled.bury },
      ...(outbox === undefined ? {} : { outbox }),
    }
  }

  #statusWord(): string {
    if (this.#draining) return 'draining'
    if (!this.#gate.isOpen) return this.#gate.has('fault') ? 'paused' : 'quiet'
    const isCutOff = this.#watched.report().some(({ state }) => state !== 'up')
    return isCutOff || this.#slots.some((slot) => slot.state === 'connecting') ? 'connecting' : 'ok'
  }

  lastSettlement(): Settlement | undefined {
    return this.#last
  }
}

function whyUnknown(type: string, catalogue: Catalogue): string {
  const broken = catalogue.broken.get(type)
  if (broken !== undefined) return `algorithm ${type} cannot be run here: ${broken}`
  const known = [...catalogue.algorithms.keys()].sort()
  const hint = didYouMean(type, known)
  const list = `${hint === '' ? '; there' : `${hint} There`} ${known.length === 1 ? 'is' : 'are'} ${known.join(', ')}`
  return `there is no algorithm ${type} here${list}; after installing it: SIGHUP to the worker, then kick the job`
}
