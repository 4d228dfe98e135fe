/**
 * The workers under torture. Each seat has a worker, and gets a new one when it ends; each worker has a name of its own
 * (`w1.3` is the third on seat 1), which its processes and those of its runs carry in their environment.
 *
 * Logs go to files, not pipes: what a killed worker said is there, and who is slow to read blocks nobody.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { uptimeSeconds } from '../process.ts'
import type { Interval } from './deadline.ts'
import { MARK } from './marked.ts'
import { SAILOR_TYPE, WARM_SAILOR_TYPE } from './plan.ts'
import type { TcpProxy } from './proxy.ts'
import type { Finding } from './verdict.ts'

export interface CrewOptions {
  /** of the torture; it may be removed as a whole afterwards */
  readonly base: string
  readonly journal: string
  /** programs, compiled */
  readonly qworker: string
  readonly sailor: string
  /** the rc of all; what differs from seat to seat is added here */
  readonly settings: Readonly<Record<string, unknown>>
  /** undefined: the torture's own */
  readonly env: Readonly<Record<string, string>> | undefined
  /** variables that must not reach a worker: they would win over its rc */
  readonly unset: readonly string[]
  readonly proxies: readonly TcpProxy[]
}

export interface Sailor {
  readonly name: string
  readonly seat: number
  readonly log: string
  readonly stops: { from: number; to: number | undefined }[]
  /** seconds since boot */
  killedAt: number | undefined
  /** what the torture did that may end it */
  asked: 'term' | 'kill' | undefined
  child: ChildProcess
  readonly ended: Promise<void>
}

export interface Crew {
  /** every worker that there ever was, by its name */
  readonly sailors: ReadonlyMap<string, Sailor>
  readonly crashes: readonly Finding[]
  readonly stuck: readonly Finding[]
  aliveCount(): number
  kill(seat: number): void
  term(seat: number, twice: boolean): void
  stop(seat: number, durationMs: number): Promise<void>
  /** Lets all go on that are stopped. */
  calm(): void
  /** TERM to all; none is replaced. */
  dismiss(): Promise<void>
  /** One more worker, which cleans up after the others; until it is ready, then it is stopped too. */
  sendCleaner(): Promise<void>
  killAll(): Promise<void>
}

/** A worker may refuse to start while its broker, its bucket or its disk are away. */
const EXCUSES = [69, 73]
const RESTART_MS = 200
const EXCUSED_RESTART_MS = 1_000
const SECOND_TERM_MS = 700
const TERM_PATIENCE_MS = 45_000
const CLEANER_MS = 8_000
/** So few that they are replaced now and then. */
const WARM_JOBS = 10

interface State {
  readonly options: CrewOptions
  readonly sailors: Map<string, Sailor>
  readonly onSeat: Map<number, Sailor>
  readonly crashes: Finding[]
  readonly stuck: Finding[]
  readonly voyages: Map<number, number>
  isClosing: boolean
}

export function hireCrew(options: CrewOptions): Crew {
  const state: State = {
    options,
    sailors: new Map(),
    onSeat: new Map(),
    crashes: [],
    stuck: [],
    voyages: new Map(),
    isClosing: false,
  }
  mkdirSync(join(options.base, 'log'), { recursive: true })
  const seats = options.proxies.map((_, i) => keepSeat(state, i))
  return {
    sailors: state.sailors,
    crashes: state.crashes,
    stuck: state.stuck,
    aliveCount: () => [...state.onSeat.values()].filter(isRunning).length,
    kill: (seat) => withSailor(state, seat, kill),
    term: (seat, twice) => withSailor(state, seat, (sailor) => void term(state, sailor, twice)),
    stop: async (seat, durationMs) => {
      const sailor = state.onSeat.get(seat)
      if (sailor === undefined || !isRunning(sailor)) return
      stop(sailor)
      await sleep(durationMs)
      go(sailor)
    },
    calm: () => [...state.onSeat.values()].forEach(go),
    dismiss: async () => {
      state.isClosing = true
      for (const sailor of state.onSeat.values()) go(sailor)
      await Promise.all([...state.onSeat.values()].map((sailor) => term(state, sailor, false)))
      await Promise.all(seats)
    },
    sendCleaner: async () => {
      const cleaner = start(state, 0)
      await Promise.race([cleaner.ended, sleep(CLEANER_MS)])
      await term(state, cleaner, false)
    },
    killAll: async () => {
      state.isClosing = true
      for (const sailor of state.sailors.values()) if (isRunning(sailor)) kill(sailor)
      await Promise.all(seats)
      await Promise.all([...state.sailors.values()].map(({ ended }) => ended))
    },
  }
}

async function keepSeat(state: State, seat: number): Promise<void> {
  while (!state.isClosing) {
    const sailor = start(state, seat)
    await sailor.ended
    const { exitCode, signalCode } = sailor.child
    const isExcused = exitCode !== null && EXCUSES.includes(exitCode)
    // SIGTERM ends a worker that has only begun to start.
    const isObedient = sailor.asked === 'term' && (exitCode === 0 || signalCode === 'SIGTERM')
    const isExpected = sailor.asked === 'kill' || isObedient || isExcused
    if (!isExpected)
      state.crashes.push({
        id: sailor.name,
        detail: `it ended by itself with ${exitCode ?? signalCode}; see ${sailor.log}`,
      })
    await sleep(isExpected && !isExcused ? RESTART_MS : EXCUSED_RESTART_MS)
  }
}

function start(state: State, seat: number): Sailor {
  const { options } = state
  const voyage = (state.voyages.get(seat) ?? 0) + 1
  state.voyages.set(seat, voyage)
  const name = `w${seat + 1}.${voyage}`
  const rc = writeRc(options, seat, name)
  const log = join(options.base, 'log', `${name}.log`)
  const fd = openSync(log, 'a')
  const unset = options.unset.flatMap((key) => ['-u', key])
  const args = [...unset, `${MARK}=${options.base}/${name}`, process.execPath, options.qworker, '-c', rc]
  // By way of env(1), which becomes the worker: the torture's own environment is not read, only handed on.
  const child = spawn('env', args, {
    ...(options.env === undefined ? {} : { env: options.env }),
    stdio: ['ignore', fd, fd],
    detached: true,
  })
  closeSync(fd)
  const ended = Promise.race([once(child, 'exit'), once(child, 'error')]).then(
    () => undefined,
    () => undefined,
  )
  const sailor: Sailor = { name, seat, log, stops: [], killedAt: undefined, asked: undefined, child, ended }
  state.sailors.set(name, sailor)
  state.onSeat.set(seat, sailor)
  return sailor
}

/** JSON is YAML. The algorithms are each worker's own, so that its runs carry its name. */
function writeRc({ base, journal, sailor, settings, proxies }: CrewOptions, seat: number, name: string): string {
  const algorithms = join(base, 'algorithms', name)
  const common = { version: '1.0.0', env: { [MARK]: `${base}/${name}` } }
  const command = ['{node}', sailor, '--journal', journal]
  const manifests = {
    [SAILOR_TYPE]: { ...common, command: [...command, '-s', '{ttr}', '-v'] },
    [WARM_SAILOR_TYPE]: { ...common, command: [...command, '-s', '0.1', '--warm'], mode: 'warm', max_jobs: WARM_JOBS },
  }
  for (const [type, manifest] of Object.entries(manifests)) {
    mkdirSync(join(algorithms, type), { recursive: true })
    writeFileSync(join(algorithms, type, 'algorithm.yaml'), JSON.stringify(manifest))
  }
  const rc = join(algorithms, 'qworkerrc')
  const ours = {
    BEANSTALK_SERVER: '127.0.0.1',
    BEANSTALK_PORT: proxies[seat]?.port,
    ALGORITHM_DIRS: [algorithms],
    HTTP_PORT: 0,
    LOG_FORMAT: 'json',
    LOG_LEVEL: 'debug',
  }
  writeFileSync(rc, JSON.stringify({ ...settings, ...ours }, null, 1), { mode: 0o600 })
  return rc
}

function withSailor(state: State, seat: number, act: (sailor: Sailor) => void): void {
  const sailor = state.onSeat.get(seat)
  if (sailor !== undefined && isRunning(sailor)) act(sailor)
}

function isRunning({ child }: Sailor): boolean {
  return child.pid !== undefined && child.exitCode === null && child.signalCode === null
}

function kill(sailor: Sailor): void {
  sailor.asked = 'kill'
  sailor.child.kill('SIGKILL')
  sailor.killedAt ??= uptimeSeconds()
  endStop(sailor)
}

async function term(state: State, sailor: Sailor, twice: boolean): Promise<void> {
  if (!isRunning(sailor) || sailor.asked !== undefined) return sailor.ended
  sailor.asked = 'term'
  sailor.child.kill('SIGTERM')
  if (twice) {
    await Promise.race([sailor.ended, sleep(SECOND_TERM_MS)])
    if (isRunning(sailor)) sailor.child.kill('SIGTERM')
  }
  const patience = new AbortController()
  const waited = sleep(TERM_PATIENCE_MS, undefined, { signal: patience.signal }).catch(() => undefined)
  await Promise.race([sailor.ended, waited])
  patience.abort()
  if (!isRunning(sailor)) return
  state.stuck.push({ id: sailor.name, detail: `alive ${TERM_PATIENCE_MS / 1000} s after SIGTERM; see ${sailor.log}` })
  kill(sailor)
  await sailor.ended
}

function stop(sailor: Sailor): void {
  sailor.child.kill('SIGSTOP')
  if (sailor.stops.at(-1)?.to !== undefined || sailor.stops.length === 0)
    sailor.stops.push({ from: uptimeSeconds(), to: undefined })
}

function go(sailor: Sailor): void {
  if (!isRunning(sailor)) return
  sailor.child.kill('SIGCONT')
  endStop(sailor)
}

function endStop(sailor: Sailor): void {
  const last = sailor.stops.at(-1)
  if (last !== undefined && last.to === undefined) last.to = uptimeSeconds()
}

/** For those who compute with it. */
export function timesOf(sailor: Sailor): { stops: readonly Interval[]; killedAt: number | undefined } {
  return { stops: sailor.stops, killedAt: sailor.killedAt }
}
