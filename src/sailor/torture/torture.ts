/**
 * A torture from its beginning to its verdict:
 *
 *     rig - crew - (jobs and faults until the time is over) - calm - drain - dismiss - one more worker - compare
 *
 * Every step is bounded in time. Whatever happens, nothing that was started stays.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { rollDice } from '../dice.ts'
import { countRuns, readOverlaps } from '../journal.ts'
import { type Crew, hireCrew, timesOf } from './crew.ts'
import { bringFaults, calmAll, type FaultRecord, type Victims } from './faults.ts'
import { type Logbook, makeLogbook } from './logbook.ts'
import { type Lookout, startLookout } from './lookout.ts'
import { findMarked } from './marked.ts'
import { type FaultKind, planFaults } from './plan.ts'
import { type Ledger, type Producers, startProducers } from './producers.ts'
import { findLeaks, type ResultWatch, readDisk, watchResults } from './results.ts'
import { buildRig, type Rig, type World } from './rig.ts'
import { computeVerdict, type Finding, type JobFacts, type Verdict } from './verdict.ts'
import { countTube, openWire, stateOfTicket, type Wire } from './wire.ts'

export interface TortureOptions {
  readonly world: World
  readonly seed: number
  readonly minutes: number
  readonly jobsPerSecond: number
  readonly workers: number
  readonly keep: boolean
  /** rc values of the workers; where things are is added here */
  readonly settings: Readonly<Record<string, unknown>>
  readonly graceSeconds: number
  /** compiled programs */
  readonly qworker: string
  readonly sailor: string
  readonly environment: Readonly<Record<string, string>>
  readonly unset: readonly string[]
  /** unique for each torture of a deployment */
  readonly tag: string
  readonly signal: AbortSignal
  readonly onProgress: (progress: Progress) => void
}

export interface Progress {
  readonly phase: 'torture' | 'drain' | 'end'
  readonly seconds: number
  readonly ofSeconds: number
  readonly put: number
  readonly open: number
  readonly buried: number
  readonly complete: number
  readonly faults: number
  readonly workers: number
  readonly lateKills: number
}

export interface TortureReport {
  readonly seed: number
  readonly minutes: number
  readonly seconds: number
  readonly verdict: Verdict
  readonly runs: number
  readonly faults: Readonly<Record<string, number>>
  /** requests to S3 that met a fault */
  readonly s3Faults: number
  readonly workersStarted: number
  /** longest that a run was seen alive beyond TTR + GRACE_TIME */
  readonly latestSeconds: number
  readonly notes: readonly string[]
  /** the log of some jobs of which something bad was found */
  readonly logs: Readonly<Record<string, readonly string[]>>
}

export type TortureEnd =
  | { readonly kind: 'report'; readonly report: TortureReport }
  | { readonly kind: 'not_started'; readonly reason: string }
  | { readonly kind: 'interrupted'; readonly kept: string | undefined }

const PROGRESS_MS = 10_000
const LOOK_MS = 1_000
/** Seconds of jobs that may wait: what is put must be done soon after the end. */
const OPEN_SECONDS = 20
const MOST_OPEN = 200
const LEAST_OPEN = 30
/** A drain without any progress for so long is given up, and any after so long. */
const DRAIN_STALL_MS = 75_000
const LONGEST_DRAIN_MS = 600_000
/** An empty queue is believed when it was seen so often in a row. */
const EMPTY_LOOKS = 3
/** What a small disk must hold: the documents and outputs of each job, and room for runs. */
const JOB_MEGABYTES = 0.15
const ROOM_MEGABYTES = 96
const LAST_BREATH_MS = 3_000
const SHOWN_LOGS = 4

/** What is under way. */
interface Scene {
  readonly options: TortureOptions
  readonly rig: Rig
  readonly crew: Crew
  readonly victims: Victims
  readonly lookout: Lookout
  readonly logbook: Logbook
  readonly watch: ResultWatch
  readonly record: FaultRecord
  readonly began: number
  producers: Producers | undefined
  phase: Progress['phase']
  open: number
  buried: number
  /** jobs that had been put when the queue was last looked at */
  putAtLook: number
}

export async function torture(options: TortureOptions): Promise<TortureEnd> {
  let rig: Rig
  try {
    rig = await build(options)
  } catch (error) {
    return { kind: 'not_started', reason: (error as Error).message }
  }
  const scene = setScene(options, rig)
  const stopLooking = startLooking(scene)
  let end: TortureEnd
  let left: string[]
  try {
    await play(scene)
    end = options.signal.aborted
      ? { kind: 'interrupted', kept: options.keep ? rig.base : undefined }
      : { kind: 'report', report: await compare(scene) }
  } finally {
    stopLooking()
    scene.lookout.stop()
    await scene.crew.killAll()
    left = await rig.takeDown()
  }
  if (end.kind !== 'report' || left.length === 0) return end
  const notes = [...end.report.notes, ...left.map((problem) => `could not be cleaned up: ${problem}`)]
  return { kind: 'report', report: { ...end.report, notes } }
}

function build(options: TortureOptions): Promise<Rig> {
  const { world, workers, tag, qworker, environment, keep, seed, minutes, jobsPerSecond } = options
  const diskMegabytes = Math.ceil(ROOM_MEGABYTES + minutes * 60 * jobsPerSecond * JOB_MEGABYTES)
  let throws = 0
  const isHit = (share: number) => rollDice(seed, ++throws, 100) < share
  return buildRig({ world, workers, tag, qworker, environment, keep, diskMegabytes, isHit })
}

function setScene(options: TortureOptions, rig: Rig): Scene {
  const crew = hireCrew({
    base: rig.base,
    journal: rig.journal,
    qworker: options.qworker,
    sailor: options.sailor,
    settings: { ...options.settings, ...rig.settings },
    env: rig.workerEnv,
    unset: options.unset,
    proxies: rig.proxies,
  })
  const { proxies, producerProxy, broker, bucket, disk } = rig
  const lookout = startLookout({
    base: rig.base,
    graceSeconds: options.graceSeconds,
    timesOf: (name) => {
      const sailor = crew.sailors.get(name)
      return sailor && timesOf(sailor)
    },
  })
  const onOrphans = () => lookout.lookClosely()
  return {
    options,
    rig,
    crew,
    victims: { crew, proxies, producerProxy, broker, bucket, disk, onOrphans },
    lookout,
    logbook: makeLogbook(),
    watch: watchResults(rig.resultDir),
    record: { done: new Map<FaultKind, number>(), failures: [] },
    began: performance.now(),
    producers: undefined,
    phase: 'torture',
    open: 0,
    buried: 0,
    putAtLook: 0,
  }
}

/** Looks at queue, logs and results all the time, and tells how it goes. */
function startLooking(scene: Scene): () => void {
  let wire: Wire | undefined
  let stopped = false
  let told = performance.now()
  const look = async () => {
    while (!stopped) {
      try {
        wire ??= openWire(scene.rig.brokerHost, scene.rig.brokerPort)
        const { open, buried } = await countTube(wire, scene.rig.tube)
        scene.open = open
        scene.buried = buried
        scene.putAtLook = ledgerOf(scene).size
      } catch {
        // The broker is away: what it last said holds.
        wire?.close()
        wire = undefined
      }
      scene.logbook.read(scene.crew.sailors.values())
      scene.watch.look(namedJobs(scene))
      if (performance.now() - told >= PROGRESS_MS) {
        told = performance.now()
        scene.options.onProgress(progressOf(scene))
      }
      await sleep(LOOK_MS)
    }
  }
  void look()
  return () => {
    stopped = true
    wire?.close()
  }
}

function namedJobs(scene: Scene): string[] {
  return [...ledgerOf(scene).values()].filter(({ job }) => job.hasStatus).map(({ job }) => job.id)
}

function ledgerOf(scene: Scene): Ledger {
  return scene.producers?.ledger ?? new Map()
}

function progressOf(scene: Scene): Progress {
  const { options, phase, open, buried, watch, record, crew, lookout } = scene
  return {
    phase,
    seconds: Math.round((performance.now() - scene.began) / 1000),
    ofSeconds: Math.round(options.minutes * 60),
    put: ledgerOf(scene).size,
    open,
    buried,
    complete: watch.seenCount(),
    faults: [...record.done.values()].reduce((sum, count) => sum + count, 0),
    workers: crew.aliveCount(),
    lateKills: lookout.lateKills.length,
  }
}

async function play(scene: Scene): Promise<void> {
  const { options, rig, crew, victims, record } = scene
  const { seed, minutes, jobsPerSecond, signal } = options
  const lengthMs = minutes * 60_000
  const faults = planFaults(seed, lengthMs, {
    isPrivate: rig.broker !== undefined,
    hasS3: rig.bucket !== undefined,
    hasSmallDisk: rig.disk !== undefined,
  })
  const over = new AbortController()
  const producing = AbortSignal.any([over.signal, signal])
  scene.producers = startProducers({
    seed,
    brokerUrl: `beanstalk://127.0.0.1:${rig.producerProxy.port}`,
    tube: rig.tube,
    jobsPerSecond,
    maxOpen: Math.min(Math.max(jobsPerSecond * OPEN_SECONDS, LEAST_OPEN), MOST_OPEN),
    openCount: () => scene.open + ledgerOf(scene).size - scene.putAtLook,
    signal: producing,
  })
  await Promise.all([
    bringFaults(faults, victims, record, signal),
    sleep(lengthMs, undefined, { signal }).catch(() => undefined),
  ])
  over.abort()
  calmAll(victims)
  await scene.producers.done
  if (signal.aborted) return
  scene.phase = 'drain'
  await drain(scene)
  if (signal.aborted) return
  scene.phase = 'end'
  await crew.dismiss()
  await crew.sendCleaner()
  await sleep(LAST_BREATH_MS, undefined, { signal }).catch(() => undefined)
}

/** Until the queue is empty and S3 has what is complete; or nothing has changed for long. */
async function drain(scene: Scene): Promise<void> {
  const { signal } = scene.options
  const began = performance.now()
  let changed = began
  let last = ''
  const onS3 = new Set<string>()
  for (let empty = 0; empty < EMPTY_LOOKS && !signal.aborted; ) {
    await sleep(LOOK_MS, undefined, { signal }).catch(() => undefined)
    const missing = scene.open === 0 ? await countMissingCopies(scene, onS3) : 0
    empty = scene.open === 0 && missing === 0 ? empty + 1 : 0
    const state = `${scene.open} ${scene.buried} ${scene.watch.seenCount()} ${missing}`
    if (state !== last) changed = performance.now()
    last = state
    const now = performance.now()
    if (now - changed > DRAIN_STALL_MS || now - began > LONGEST_DRAIN_MS) return
  }
}

async function countMissingCopies({ rig, producers }: Scene, onS3: Set<string>): Promise<number> {
  if (rig.copies === undefined) return 0
  let missing = 0
  for (const id of producers?.ledger.keys() ?? []) {
    if (onS3.has(id)) continue
    const { disk, files } = readDisk(rig.resultDir, id)
    if (disk.result !== 'whole') continue
    const compared = await rig.copies.compare(id, files).catch(() => 'missing' as const)
    if (compared === 'missing') missing++
    else onS3.add(id)
  }
  return missing
}

async function compare(scene: Scene): Promise<TortureReport> {
  const { options, rig, crew, lookout, logbook, watch, record } = scene
  logbook.read(crew.sailors.values())
  watch.look(namedJobs(scene), 'all')
  const { jobs, leftOpen } = await gatherJobs(scene)
  const verdict = computeVerdict({
    jobs,
    leftOpen,
    publishedTwice: byJob([
      ...logbook.publishedTwice(),
      ...watch.replaced,
      ...(rig.copies?.replaced(ledgerOf(scene).keys()) ?? []),
    ]),
    blind: findBlindness(scene, jobs),
    ranTwice: byJob([
      ...readOverlaps(rig.journal).map(({ uuid, detail }) => ({ id: uuid, detail })),
      ...lookout.overlaps,
    ]),
    survivors: [...findSurvivors(rig), ...logbook.survivors()],
    lateKills: lookout.lateKills,
    leaks: findLeaks(rig.resultDir),
    crashes: crew.crashes,
    stuck: crew.stuck,
  })
  const stalled = lookout.stalledSeconds()
  return {
    seed: options.seed,
    minutes: options.minutes,
    seconds: Math.round((performance.now() - scene.began) / 1000),
    verdict,
    runs: Math.max(countRuns(rig.journal), lookout.runCount()),
    faults: Object.fromEntries([...record.done].sort(([a], [b]) => a.localeCompare(b))),
    s3Faults: rig.bucket?.hits() ?? 0,
    workersStarted: crew.sailors.size,
    latestSeconds: lookout.latestSeconds(),
    notes: [
      ...rig.notes,
      ...record.failures.map((failure) => `a fault could not be brought about: ${failure}`),
      ...(stalled > 1
        ? [`this machine gave the torture no processor for ${stalled} s in all; they were allowed for`]
        : []),
    ],
    logs: collectLogs(verdict, logbook),
  }
}

/** Who sees nothing finds nothing: what must have been seen, and was not, is a finding too. */
function findBlindness({ rig, lookout, logbook }: Scene, jobs: readonly JobFacts[]): Finding[] {
  const complete = jobs.filter(({ disk }) => disk.result === 'whole').length
  const eyes: [string, number][] = [
    ['runs in the journal', countRuns(rig.journal)],
    ['runs in /proc', lookout.runCount()],
    ['publications in the logs', logbook.eventCount('job_published')],
  ]
  // Most of them: a worker may be killed between the deed and the word, and a run be over between two looks.
  return eyes.flatMap(([id, seen]) =>
    seen >= complete / 2 ? [] : [{ id, detail: `${seen} were seen, and ${complete} jobs are complete` }],
  )
}

/** A job may be found in several ways, and is one job. */
function byJob(findings: readonly Finding[]): Finding[] {
  const details = new Map<string, string[]>()
  for (const { id, detail } of findings) details.set(id, [...(details.get(id) ?? []), detail])
  return [...details].map(([id, all]) => ({ id, detail: [...new Set(all)].slice(0, 3).join('; ') }))
}

async function gatherJobs({ rig, producers, options }: Scene): Promise<{ jobs: JobFacts[]; leftOpen: number }> {
  const wire = openWire(rig.brokerHost, rig.brokerPort)
  const jobs: JobFacts[] = []
  try {
    const leftOpen = (await countTube(wire, rig.tube)).open
    for (const { job, puts } of producers?.ledger.values() ?? []) {
      const { disk, files } = readDisk(rig.resultDir, job.hasStatus ? job.id : 'none')
      const told = await Promise.all(
        puts.map(async ({ answer, ticket }) => ({
          answer,
          state: ticket === undefined ? undefined : await stateOfTicket(wire, ticket, job.body),
        })),
      )
      const s3 =
        disk.result === 'whole' ? await rig.copies?.compare(job.id, files).catch(() => 'missing' as const) : undefined
      jobs.push({ id: job.id, expects: job.expects, hasStatus: job.hasStatus, puts: told, disk, s3 })
      // What it put into the broker of a deployment it takes out again.
      if (options.world.kind === 'deployment' && !options.keep)
        for (const { ticket } of puts) if (ticket !== undefined) await wire.ask(`delete ${ticket}`)
    }
    return { jobs, leftOpen }
  } finally {
    wire.close()
  }
}

function findSurvivors({ base }: Rig): Finding[] {
  return findMarked(base)
    .filter(({ worker }) => worker !== 'broker')
    .map(({ pid, worker, run }) => ({
      id: run?.uuid ?? worker ?? String(pid),
      detail: `process ${pid} of ${run === undefined ? `worker ${worker ?? 'unknown'}` : `attempt ${run.attempt} (${worker})`} is alive after all workers have ended`,
    }))
}

function collectLogs(verdict: Verdict, logbook: Logbook): Record<string, readonly string[]> {
  const ids = new Set(
    Object.values(verdict.bad)
      .flatMap((findings) => findings.slice(0, 2).map(({ id }) => id))
      .filter((id) => logbook.linesOf(id).length > 0),
  )
  return Object.fromEntries([...ids].slice(0, SHOWN_LOGS).map((id) => [id, logbook.linesOf(id)]))
}
