/**
 * What a slot has of warm algorithms:
 *
 *     <worker's folder>/.warm/<algorithm>/<slot>.<n>/      a seat: what a slot has of one algorithm
 *         process-<n>/home/          working directory, HOME and TMPDIR of a process; .settings.json
 *         process-<n>/stderr.log     what a job wrote to it is moved to job-<n>.stderr.log
 *         job-<n>/                   for the files of one job
 *
 * A slot has one process of an algorithm, and of at most MOST_SEATS algorithms: the one that was used least recently
 * makes room. A process is replaced after `max_jobs`, after whatever was wrong with it, when it was killed, and when
 * the algorithms are read anew. What it has left when it is replaced is ended with it. Its successor may start
 * meanwhile: so each has a folder of its own, by which its processes are found.
 */

import { randomBytes } from 'node:crypto'
import { chownSync, mkdirSync, readdirSync, realpathSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import type { Outcome } from '../job/outcome.ts'
import { type Algorithm, commandFor, explainStartFailure } from './algorithm.ts'
import { type Groups, removeGroups } from './cgroup.ts'
import { findProgram, MACHINE_FAULTS, startFailure } from './first-process.ts'
import { MARK_VARIABLE } from './look.ts'
import type { RunEnd, RunRequest } from './run.ts'
import { accessProblem, handOver } from './user.ts'
import { startWarmProcess, type WarmProcess } from './warm-process.ts'
import {
  directoryBytes,
  isAsMade,
  removeTree,
  removeWorkdir,
  SETTINGS_FILE,
  WORK_FOLDER,
  type Workdir,
  warmFolder,
  warmMark,
} from './workdir.ts'

/** Algorithms of which a slot has a process at the same time. */
const MOST_SEATS = 4
const HOME_CHECK_MS = 10_000

/** The directory of one job of a warm algorithm. */
export interface WarmWorkdir extends Workdir {
  readonly seat: Seat
  readonly logs: [name: string, path: string][]
  /** nothing was left in it */
  isEmpty: boolean
  close(): Promise<void>
}

/** The warm processes of one slot. */
export interface WarmSeats {
  /**
   * Makes the directory of a job. A slot has one at a time.
   * @param settings rc values that the manifest asks for
   * @throws what the file system throws: a fault of the machine
   */
  openWorkdir(algorithm: Algorithm, settings: Readonly<Record<string, unknown>> | undefined): WarmWorkdir
  /** Ends all processes that are of another generation. They have no job. */
  renew(generation: number): void
  /** Ends all. Never rejects. */
  close(): Promise<void>
}

export interface WarmOptions {
  /** the worker's folder */
  readonly workshop: string
  readonly workerId: string
  readonly slot: number
}

export function openWarmSeats(options: WarmOptions): WarmSeats {
  /** the least recently used first */
  const seats = new Map<string, Seat>()
  const ending = new Set<Promise<void>>()
  let generation: number | undefined
  let seatNumber = 0
  const end = (seat: Seat) => {
    const ended: Promise<void> = seat.close().finally(() => ending.delete(ended))
    ending.add(ended)
  }
  const endAll = () => {
    for (const seat of seats.values()) end(seat)
    seats.clear()
  }
  return {
    openWorkdir(algorithm, settings) {
      let seat = seats.get(algorithm.name)
      seats.delete(algorithm.name)
      if (seat !== undefined && seat.algorithm !== algorithm) {
        end(seat)
        seat = undefined
      }
      seat ??= new Seat(options, algorithm, settings, ++seatNumber)
      seats.set(algorithm.name, seat)
      for (const [name, oldest] of seats) {
        if (seats.size <= MOST_SEATS) break
        seats.delete(name)
        end(oldest)
      }
      return seat.openWorkdir()
    },
    renew(now) {
      if (generation !== now) endAll()
      generation = now
    },
    async close() {
      endAll()
      await Promise.all(ending)
    },
  }
}

export class Seat {
  readonly algorithm: Algorithm
  /** the rc's part of it */
  readonly #settings: Readonly<Record<string, unknown>> | undefined
  readonly #options: WarmOptions
  readonly #path: string
  /** undefined until it is made */
  #realPath: string | undefined
  #process: WarmProcess | undefined
  #groups: Groups | undefined
  readonly #ending = new Set<Promise<void>>()
  #processNumber = 0
  #jobNumber = 0
  /** an empty job directory */
  #spare: string | undefined
  #homeChecked = performance.now()

  constructor(
    options: WarmOptions,
    algorithm: Algorithm,
    settings: Readonly<Record<string, unknown>> | undefined,
    number: number,
  ) {
    this.#options = options
    this.algorithm = algorithm
    this.#settings = settings
    this.#path = join(warmFolder(options.workshop, algorithm.name), `${options.slot}.${number}`)
  }

  /**
   * A directory that nothing was left in serves again, by another name: who still writes to the old one finds it gone.
   * Looked at again: the process goes on after its answer.
   */
  openWorkdir(): WarmWorkdir {
    const { user } = this.algorithm
    const path = join(this.#path, `job-${++this.#jobNumber}`)
    const spare = this.#spare
    this.#spare = undefined
    const isUsable = spare !== undefined && isUntouched(spare, user?.uid)
    if (spare !== undefined && !isUsable) this.#see(this.#remove(spare))
    if (!isUsable || !tryRename(spare, path)) {
      this.#makePlace()
      mkdirSync(path, { mode: 0o700 })
      if (user !== undefined) chownSync(path, user.uid, user.gid)
    }
    const workdir: WarmWorkdir = {
      path: this.#path,
      scratch: path,
      input: join(path, 'input.json'),
      stdout: `${path}.stdout.log`,
      stderr: `${path}.stderr.log`,
      user,
      seat: this,
      logs: [],
      isEmpty: false,
      close: () => this.#closeWorkdir(workdir),
    }
    return workdir
  }

  async #closeWorkdir({ scratch, logs, isEmpty, user }: WarmWorkdir): Promise<void> {
    for (const [, log] of logs) rmSync(log, { force: true })
    if (isEmpty) {
      this.#spare = scratch
      return
    }
    await this.#remove(scratch)
    // Copies that were not published.
    if (user !== undefined) await removeTree(join(this.#path, 'outputs'))
  }

  /** Up to `.work` and no further: where the result directory is gone, it must not be made anew. */
  #makePlace(): void {
    if (this.#realPath !== undefined && tryRealPath(this.#path) === this.#realPath) return
    for (const folder of [...this.#foldersAbove(), this.#path]) {
      try {
        mkdirSync(folder, { mode: 0o700 })
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      }
    }
    this.#realPath = realpathSync(this.#path)
  }

  #foldersAbove(): string[] {
    const { workshop } = this.#options
    const base = dirname(workshop)
    const ours = basename(base) === WORK_FOLDER ? [base, workshop] : [workshop]
    return [...ours, dirname(dirname(this.#path)), dirname(this.#path)]
  }

  /** The process that the next job is handed to. @throws what the file system throws */
  async getProcess(request: RunRequest): Promise<WarmProcess | { outcome: Outcome }> {
    if (this.#process?.isReady()) return this.#process
    if (this.#process !== undefined) this.retire(this.#process, 'close')
    const started = await this.#startProcess(request)
    if (!('outcome' in started)) this.#process = started
    return started
  }

  async #startProcess(request: RunRequest): Promise<WarmProcess | { outcome: Outcome }> {
    const { algorithm } = this
    const notStarted = (detail: string) => ({ outcome: { kind: 'not_started', detail } as const })
    const [program = '', ...args] = commandFor(algorithm, { ttr: 0, uuid: '', attempt: 0 })
    const found = findProgram(request, program)
    if ('outcome' in found) return found
    const file = found.path
    const place = await this.#makeHome()
    const home = join(place, 'home')
    const barred = algorithm.user && (await accessProblem(algorithm.user, home, file))
    if (barred || request.signal.aborted) {
      await this.#remove(place)
      return barred
        ? notStarted(`algorithm ${algorithm.name}: ${barred}`)
        : { outcome: request.signal.reason as RunEnd }
    }
    const mark = `${warmMark(this.#options.workerId, algorithm.name)}${randomBytes(8).toString('hex')}`
    this.#groups = request.groups
    const group = request.groups?.make(mark, algorithm.restraint?.inGroup)
    const cgroupBase = group && request.groups?.base
    const started = startWarmProcess({
      algorithm,
      file,
      args,
      environment: environmentOf(request, home, mark),
      mark,
      home,
      place,
      stderr: join(place, 'stderr.log'),
      group,
      cgroupBase,
      onSpoilt: (process, how) => this.retire(process, how),
    })
    if (!('failure' in started)) return started
    const { code = '', message } = await started.failure
    await removeGroups({ pid: 0, mark, cgroupBase })
    await this.#remove(place)
    if (MACHINE_FAULTS.has(code)) return { outcome: { kind: 'worker_fault', detail: `${file}: ${message}` } }
    return notStarted(startFailure(algorithm, file, (await explainStartFailure(file, code)) ?? message))
  }

  /** @returns the folder of the next process, without links: so /proc names it */
  async #makeHome(): Promise<string> {
    const { user } = this.algorithm
    this.#makePlace()
    const place = join(this.#realPath as string, `process-${++this.#processNumber}`)
    const home = join(place, 'home')
    mkdirSync(home, { recursive: true, mode: 0o700 })
    if (this.#settings !== undefined)
      writeFileSync(join(home, SETTINGS_FILE), JSON.stringify(this.#settings), { mode: 0o600 })
    if (user !== undefined) await handOver({ path: place, scratch: home }, user, [...this.#foldersAbove(), this.#path])
    return place
  }

  /** Ends a process that has no job any more; in the background. */
  retire(process: WarmProcess, how: 'kill' | 'close'): void {
    if (this.#process === process) this.#process = undefined
    this.#see(this.#retire(process, how))
  }

  /** To its end, before the seat is closed. */
  #see(ending: Promise<void>): void {
    const ended: Promise<void> = ending.catch(() => undefined).finally(() => this.#ending.delete(ended))
    this.#ending.add(ended)
  }

  async #retire(process: WarmProcess, how: 'kill' | 'close'): Promise<void> {
    await process.end(how)
    const [busy] = await process.release()
    if (busy !== undefined) this.#groups?.tell(`${busy} cannot be removed`)
    await this.#remove(process.identity.workdir)
  }

  /** What a user owns is removed so that links lead nowhere. */
  async #remove(path: string): Promise<void> {
    const { user } = this.algorithm
    if (user === undefined) await removeTree(path)
    else await removeWorkdir({ path, scratch: path, input: '', stdout: '', stderr: '', user })
  }

  /** After each job: may its process go on? */
  keep(process: WarmProcess, request: RunRequest): void {
    process.rest(request.uuid)
    const { maxJobs } = this.algorithm.warm as { maxJobs: number }
    if (process.isSpoilt) this.retire(process, 'kill')
    else if (process.served >= maxJobs) this.retire(process, 'close')
    else this.#checkHome(process, request.maxScratchBytes)
  }

  #checkHome(process: WarmProcess, maxBytes: number): void {
    const now = performance.now()
    if (now - this.#homeChecked < HOME_CHECK_MS) return
    this.#homeChecked = now
    void directoryBytes(process.home, maxBytes).then((bytes) => {
      // Of what many jobs left there none is guilty.
      if (bytes > maxBytes && this.#process === process && !process.isBusy) this.retire(process, 'close')
    })
  }

  /** Never rejects. */
  async close(): Promise<void> {
    if (this.#process !== undefined) this.retire(this.#process, 'close')
    await Promise.all(this.#ending)
    await this.#remove(this.#path)
  }
}

/** False also when it cannot be told. */
function isUntouched(path: string, uid: number | undefined): boolean {
  try {
    return isAsMade(path, uid) && readdirSync(path).length === 0
  } catch {
    return false
  }
}

function tryRename(from: string, to: string): boolean {
  try {
    renameSync(from, to)
    return true
  } catch {
    return false
  }
}

function tryRealPath(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch {
    return undefined
  }
}

function environmentOf({ algorithm, environment }: RunRequest, home: string, mark: string): Record<string, string> {
  return {
    HOME: home,
    TMPDIR: home,
    ...(algorithm.user && { USER: algorithm.user.name, LOGNAME: algorithm.user.name }),
    ...environment,
    ...algorithm.env,
    QWORKER_TYPE: algorithm.name,
    [MARK_VARIABLE]: mark,
  }
}
