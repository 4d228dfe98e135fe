/**
 * The folder of one worker process, which holds the directories of its runs:
 *
 *     RESULT_BASEDIR/.work/<worker id>/worker.json     whose it is
 *                                      ended.json      how its runs were ended after its death (by its guard)
 *                                      <uuid>.<attempt>.<time, base 36>/     one run (workdir.ts)
 *                                      .warm/<algorithm>/                    its warm processes (warm-seat.ts)
 *
 * A worker that dies leaves it. Whoever comes next ends what is left of its runs, takes the evidence, and removes it;
 * two may do so at the same time. What belongs to a worker that lives, or of which that cannot be told, is left alone.
 *
 * Runs are of the same user as the worker, as a rule: whatever is in these folders they may change or remove. So nothing
 * that is written there decides whether a worker lives: its id does, which holds number and start of its process
 * (presence.ts), and is known to the tracker and the guard. Only of a worker without /proc (and those of earlier
 * versions) the id tells too little, and worker.json is asked; such a folder without one is nobody's only after ten
 * minutes, and only when no process works in it. What a run removed or changed comes back within half a minute.
 */

import { randomBytes } from 'node:crypto'
import { constants, existsSync } from 'node:fs'
import { lstat, mkdir, open, readdir, readFile, realpath, rename, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, isAbsolute, join, resolve } from 'node:path'
import type { KillReceipt } from '../job/outcome.ts'
import { TYPE_PATTERN } from '../job/package.ts'
import { removeGroups } from './cgroup.ts'
import { findProcesses, killRuns } from './kill.ts'
import { hasProc } from './look.ts'
import { asLocal, isNumberFree, isPresent, makeBrief, ownPresence } from './presence.ts'
import { readTail, removeTree, STDERR_TAIL_BYTES, warmFolder, warmMark } from './workdir.ts'

export interface Workshop {
  /** of the worker; a file name */
  readonly id: string
  /** absolute, without links */
  readonly path: string
  readonly presence: string
  /** absolute path of the folder with the control groups of its runs; undefined: they have none */
  readonly cgroupBase: string | undefined
  /** Removes the folder when no run is left in it. */
  close(): Promise<void>
}

/** A run that its worker did not live to end. */
export interface DeadRun {
  readonly path: string
  readonly uuid: string
  readonly attempt: number
  readonly started: Date
}

export interface DeadWorkshop {
  readonly path: string
  /** of its worker; for a run of version 0.1, which had no workshop, and for a half removed folder, the folder's name */
  readonly id: string
  /** undefined where there is no worker.json */
  readonly owner: Owner | undefined
  readonly runs: readonly DeadRun[]
}

export interface Owner {
  readonly presence: string
  /** the worker's name in documents and log */
  readonly name: string
  /** ISO 8601 */
  readonly started: string
  /** of its control groups, if it had any */
  readonly cgroupBase?: string | undefined
}

/** How the runs of a dead worker were ended. */
export interface WorkshopEnd {
  readonly receipt: KillReceipt
  /** ISO 8601; when the worker's guard had ended all; undefined when there was none, and it was done just now */
  readonly guardEnded: string | undefined
}

const OWNER_FILE = 'worker.json'
const END_FILE = 'ended.json'
/** `w<brief presence>-<random>`; without /proc, and in earlier versions, `w<pid>-<time, base 36>-<random>`. */
const WORKSHOP_NAME = /^w((\d+)-[0-9a-z]+(?:-[0-9a-f]{16})?)-[0-9a-f]{8}$/
const RUN_NAME = /^([0-9a-f]{32})\.(\d+)\.([0-9a-z]+)$/
/** Version 0.1: `<uuid>.<attempt>.<pid of the worker>.<time>`, right below `.work`. */
const OLD_RUN_NAME = /^([0-9a-f]{32})\.(\d+)\.(\d+)\.([0-9a-z]+)$/
/** In the making, or being removed. */
const HALF_NAME = /^\.(new|gone)-/
const OWNERLESS_MS = 600_000
const RESTORE_MS = 30_000
/** Ours are smaller by far. */
const MAX_DOCUMENT_BYTES = 65_536
const MAX_NAME_LENGTH = 255
/** A process that is between fork and exec has no trace yet. */
export const LOOK_AGAIN_MS = [100, 400]

/**
 * Makes the folder of this worker process.
 * @param workBase `RESULT_BASEDIR/.work`; made when it is not there, but nothing above it
 * @param name of the worker, for people
 * @param restoreMs what was removed or changed comes back in that time
 * @param cgroupBase see Workshop
 * @throws what the file system throws
 */
export async function openWorkshop(
  workBase: string,
  name: string,
  restoreMs = RESTORE_MS,
  cgroupBase?: string,
): Promise<Workshop> {
  await mkdir(workBase, { mode: 0o700 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error
  })
  const presence = ownPresence()
  const brief = makeBrief(presence) ?? `${process.pid}-${Date.now().toString(36)}`
  const id = `w${brief}-${randomBytes(4).toString('hex')}`
  const base = await realpath(workBase)
  const path = join(base, id)
  const owner: Owner = { presence, name, started: new Date().toISOString(), cgroupBase }
  const half = join(base, `.new-${id}`)
  try {
    await mkdir(half, { mode: 0o700 })
    await writeDocument(half, OWNER_FILE, owner)
    await rename(half, path)
  } catch (error) {
    await removeTree(half)
    throw error
  }
  const disk = await identify(dirname(base))
  let restored = Promise.resolve()
  const restoring = setInterval(() => {
    restored = restored.then(() => restoreOwner(path, owner, disk)).catch(() => undefined)
  }, restoreMs).unref()
  return {
    id,
    path,
    presence,
    cgroupBase,
    async close() {
      clearInterval(restoring)
      await restored
      if ((await listRuns(path)).length === 0) await removeFolder(path)
    },
  }
}

/** @param disk what the result directory was: where its disk is not mounted, nothing is made */
async function restoreOwner(path: string, owner: Owner, disk: string): Promise<void> {
  const file = join(path, OWNER_FILE)
  if ((await readSmall(file).catch(() => undefined)) === encode(owner)) return
  if ((await identify(dirname(dirname(path)))) !== disk) return
  for (const folder of [dirname(path), path]) await mkdir(folder, { mode: 0o700 }).catch(() => undefined)
  // A file is replaced; a folder would not be.
  if ((await lstat(file).catch(() => undefined))?.isDirectory()) await removeTree(file)
  await writeDocument(path, OWNER_FILE, owner)
}

async function identify(path: string): Promise<string> {
  const { dev, ino } = await stat(path)
  return `${dev}:${ino}`
}

function encode(document: object): string {
  return `${JSON.stringify(document)}\n`
}

/** Atomic: by a rename. */
async function writeDocument(folder: string, name: string, document: object): Promise<void> {
  const half = join(folder, `.${name}.${randomBytes(4).toString('hex')}`)
  await writeFile(half, encode(document), { flag: 'wx', mode: 0o600 })
  await rename(half, join(folder, name))
}

/**
 * Finds the folders of workers that are dead, and what version 0.1 and broken starts left.
 * @param workBase `RESULT_BASEDIR/.work`
 */
export async function findDeadWorkshops(workBase: string): Promise<DeadWorkshop[]> {
  const base = await realpath(workBase).catch(() => undefined)
  if (base === undefined) return []
  const dead: DeadWorkshop[] = []
  for (const entry of await readdir(base, { withFileTypes: true })) {
    if (!entry.isDirectory()) continue
    const found = await inspect(join(base, entry.name))
    if (found !== undefined) dead.push(found)
  }
  return dead
}

/**
 * Names of the workers whose folders are there and that may live.
 * @param workBase `RESULT_BASEDIR/.work`
 */
export async function findLivingWorkers(workBase: string): Promise<string[]> {
  const entries = await readdir(workBase, { withFileTypes: true }).catch(() => [])
  const names: string[] = []
  for (const { name: id } of entries.filter((entry) => entry.isDirectory() && WORKSHOP_NAME.test(entry.name))) {
    const owner = await readOwner(join(workBase, id))
    const presence = presenceOf(id, owner)
    if (owner !== undefined && presence !== undefined && isPresent(presence) !== 'dead') names.push(owner.name)
  }
  return names
}

async function inspect(path: string): Promise<DeadWorkshop | undefined> {
  const id = basename(path)
  if (WORKSHOP_NAME.test(id)) {
    const owner = await readOwner(path)
    return (await isDeadFolder(path, owner)) ? { path, id, owner, runs: await listRuns(path) } : undefined
  }
  const run = makeRun(path, OLD_RUN_NAME)
  if (run === undefined && !HALF_NAME.test(id)) return undefined
  return (await isAbandoned(path)) ? { path, id, owner: undefined, runs: run === undefined ? [] : [run] } : undefined
}

async function isDeadFolder(path: string, owner: Owner | undefined): Promise<boolean> {
  const presence = presenceOf(basename(path), owner)
  const state = presence === undefined ? 'unknown' : isPresent(presence)
  if (state !== 'unknown' || owner !== undefined) return state === 'dead'
  return !(await isUnreadable(join(path, OWNER_FILE))) && isAbandoned(path)
}

/** What the id says; only where that is too little, what is written in the folder. */
function presenceOf(id: string, owner: Owner | undefined): string | undefined {
  const brief = WORKSHOP_NAME.exec(id)?.[1]
  return brief?.split('-').length === 3 ? brief : owner?.presence
}

/** Another user's, or a fault of the disk: that nobody owns it cannot be told. */
async function isUnreadable(path: string): Promise<boolean> {
  return readSmall(path).then(
    () => false,
    (error: NodeJS.ErrnoException) => error.code !== 'ENOENT',
  )
}

async function readOwner(path: string): Promise<Owner | undefined> {
  const owner = await readDocument<Owner>(path, OWNER_FILE)
  if (typeof owner?.presence !== 'string') return undefined
  const cgroupBase = typeof owner.cgroupBase === 'string' ? owner.cgroupBase : undefined
  return { presence: owner.presence, name: cut(owner.name), started: cut(owner.started), cgroupBase }
}

function cut(value: unknown): string {
  return String(value).slice(0, MAX_NAME_LENGTH)
}

/** A run may have put anything in its place: a link, a fifo on which we would hang, or a file without end. */
async function readSmall(path: string): Promise<string> {
  const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    const stats = await handle.stat()
    if (!stats.isFile() || stats.size > MAX_DOCUMENT_BYTES) throw new Error(`${path} is none of ours`)
    return await handle.readFile('utf8')
  } finally {
    await handle.close()
  }
}

async function readDocument<T>(folder: string, name: string): Promise<Partial<T> | undefined> {
  try {
    const value: unknown = JSON.parse(await readSmall(join(folder, name)))
    return typeof value === 'object' && value !== null ? value : undefined
  } catch {
    return undefined
  }
}

async function listRuns(path: string): Promise<DeadRun[]> {
  const entries = await readdir(path, { withFileTypes: true }).catch(() => [])
  return entries
    .filter((entry) => entry.isDirectory())
    .map((entry) => makeRun(join(path, entry.name), RUN_NAME))
    .filter((run) => run !== undefined)
}

function makeRun(path: string, pattern: RegExp): DeadRun | undefined {
  const match = pattern.exec(basename(path))
  if (match === null) return undefined
  const started = new Date(Number.parseInt(match.at(-1) as string, 36))
  return { path, uuid: match[1] as string, attempt: Number(match[2]), started }
}

/** Old, without a worker that might own it, and no process works in it or writes to it. */
async function isAbandoned(path: string): Promise<boolean> {
  const id = basename(path)
  if (Date.now() - (await lastChangeOf(path)) < OWNERLESS_MS) return false
  const pid = WORKSHOP_NAME.exec(id)?.[2] ?? OLD_RUN_NAME.exec(id)?.[3]
  if (pid !== undefined && (await isMaybeWorker(Number(pid)))) return false
  if (!hasProc) return true
  const processes = await findProcesses({ pid: undefined, mark: markOf(id), workdir: path, startTicks: undefined })
  return processes.length === 0
}

async function lastChangeOf(path: string): Promise<number> {
  const paths = [path, ...(await readdir(path).catch(() => [])).map((name) => join(path, name))]
  const times = paths.map((each) =>
    lstat(each).then(
      ({ mtimeMs }) => mtimeMs,
      () => 0,
    ),
  )
  return Math.max(...(await Promise.all(times)))
}

async function isMaybeWorker(pid: number): Promise<boolean> {
  if (!hasProc) return !isNumberFree(pid)
  return (await readFile(`/proc/${pid}/cmdline`, 'latin1').catch(() => '')).includes('qworker')
}

/** What the marks of a folder's processes begin with. Those of version 0.1 begin with uuid and attempt. */
function markOf(id: string): string {
  return OLD_RUN_NAME.test(id) ? `${id.split('.').slice(0, 2).join('.')}.` : `${id}.`
}

/**
 * Ends all processes of a dead worker's runs. May be done by several, and again.
 * Where there is no /proc, and for processes of another boot or machine, there is nothing to be found.
 */
export async function endWorkshop(dead: DeadWorkshop): Promise<WorkshopEnd> {
  const own = await endRunsOf(
    dead.id,
    dead.path,
    presenceOf(dead.id, dead.owner),
    LOOK_AGAIN_MS,
    dead.owner?.cgroupBase,
  )
  // A run could have written it: it is told of, and nothing is left undone because of it.
  const ended = await readDocument<{ ended: string; receipt: unknown }>(dead.path, END_FILE)
  const byGuard = parseReceipt(ended?.receipt)
  if (byGuard === undefined) return { receipt: own, guardEnded: undefined }
  const receipt = own.signals.length > 0 ? own : { ...byGuard, survivors: own.survivors }
  return { receipt, guardEnded: cut(ended?.ended) }
}

/** Ends what is left of the runs of a worker that is dead and whose folder is gone. */
export async function endOrphans(workBase: string, id: string): Promise<KillReceipt> {
  const base = await realpath(workBase).catch(() => resolve(workBase))
  return endRunsOf(id, join(base, id), presenceOf(id, undefined), LOOK_AGAIN_MS)
}

function parseReceipt(value: unknown): KillReceipt | undefined {
  const { signals, duration_ms, survivors, method } = (value ?? {}) as Partial<Record<keyof KillReceipt, unknown>>
  if (!Array.isArray(signals) || !Array.isArray(survivors) || !survivors.every(Number.isSafeInteger)) return undefined
  if (!Number.isFinite(duration_ms) || (method !== 'proc' && method !== 'tree')) return undefined
  const sent: KillReceipt['signals'][number][] = []
  for (const each of signals as (Partial<KillReceipt['signals'][number]> | null)[]) {
    const { signal, at_ms, processes } = each ?? {}
    if (typeof signal !== 'string' || typeof at_ms !== 'number' || typeof processes !== 'number') return undefined
    sent.push({ signal, at_ms, processes })
  }
  return { signals: sent, duration_ms: duration_ms as number, survivors, method }
}

/**
 * Whether the worker with this id lives. Of an id that tells too little its folder is asked; without one it is `dead`,
 * unless a worker has its number.
 */
export async function stateOfWorker(workBase: string, id: string): Promise<'alive' | 'dead' | 'unknown'> {
  if (!WORKSHOP_NAME.test(id)) return 'unknown'
  const path = join(workBase, id)
  const presence = presenceOf(id, undefined) ?? (await readOwner(path))?.presence
  if (presence !== undefined) return isPresent(presence)
  const isThere = await stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== 'ENOENT',
  )
  return isThere || (await isMaybeWorker(Number(WORKSHOP_NAME.exec(id)?.[2]))) ? 'unknown' : 'dead'
}

/**
 * Ends one run of another worker that lives and does not do it: one that is stopped, or hangs. Which of its warm
 * processes has a job, that worker alone knows: where the run had none of its own, all of that type are ended. Their
 * jobs are overdue too, or soon will be.
 */
export async function endRunOf(
  workBase: string,
  id: string,
  run: string,
  type: string,
): Promise<KillReceipt | undefined> {
  if (!hasProc || !WORKSHOP_NAME.test(id) || !RUN_NAME.test(run)) return undefined
  const base = await realpath(workBase).catch(() => resolve(workBase))
  const path = join(base, id)
  const owner = await readOwner(path)
  const presence = presenceOf(id, owner)
  const local = presence === undefined ? undefined : asLocal(presence)
  if (local === undefined) return undefined
  const [uuid, attempt] = run.split('.')
  const common = { pid: undefined, startTicks: local.startTicks, ...groupsOf(owner?.cgroupBase) }
  const own = await killRuns({ ...common, mark: `${id}.${uuid}.${attempt}.`, workdir: join(path, run) }, [])
  if (own.signals.length > 0 || !TYPE_PATTERN.test(type)) return own
  return killRuns({ ...common, mark: warmMark(id, type), workdir: warmFolder(path, type) }, [])
}

const NOTHING_DONE: KillReceipt = { signals: [], duration_ms: 0, survivors: [], method: hasProc ? 'proc' : 'tree' }

/** Read from a file that a run may have changed: only groups below it whose names begin with the worker's id are touched. */
function groupsOf(path: string | undefined): { cgroupBase?: string } {
  return path !== undefined && isAbsolute(path) && existsSync(join(path, 'cgroup.procs')) ? { cgroupBase: path } : {}
}

async function endRunsOf(
  id: string,
  path: string,
  presence: string | undefined,
  pauses: readonly number[],
  cgroupBase?: string,
): Promise<KillReceipt> {
  const local = presence === undefined ? undefined : asLocal(presence)
  if (presence === undefined || local === undefined || isPresent(presence) !== 'dead') return NOTHING_DONE
  // By this folder and this mark processes are killed: neither may be short by mistake.
  if (!isAbsolute(path) || basename(path) !== id || !WORKSHOP_NAME.test(id)) return NOTHING_DONE
  const { startTicks } = local
  const runs = { pid: undefined, mark: markOf(id), workdir: path, startTicks, ...groupsOf(cgroupBase) }
  const receipt = await killRuns(runs, pauses)
  await removeGroups(runs)
  return receipt
}

/**
 * What the guard of a worker does after the worker's death. Its receipt stays in the folder for whoever accounts for
 * the runs; a folder without runs is removed.
 * @param presence of the worker, as it told its guard: what is in the folder a run may have changed
 * @param cgroupBase see Workshop; none: undefined or empty
 * @returns undefined when that worker is not dead: nothing was done
 */
export async function endForDeadWorker(
  path: string,
  id: string,
  presence: string,
  cgroupBase?: string,
): Promise<KillReceipt | undefined> {
  if (!isAbsolute(path) || basename(path) !== id || !WORKSHOP_NAME.test(id)) return undefined
  for (const each of [presence, presenceOf(id, undefined) ?? presence]) {
    if (asLocal(each) === undefined || isPresent(each) !== 'dead') return undefined
  }
  const receipt = await endRunsOf(id, path, presence, LOOK_AGAIN_MS, cgroupBase)
  if ((await listRuns(path)).length === 0) await removeFolder(path)
  // It fails where another has accounted for all and removed the folder meanwhile.
  else await writeDocument(path, END_FILE, { ended: new Date().toISOString(), receipt }).catch(() => undefined)
  return receipt
}

/** The evidence of a dead run. What was put in the place of its log is not followed. */
export async function readRunEvidence(run: DeadRun): Promise<{ stderrTail: string }> {
  const path = join(run.path, 'stderr.log')
  const isFile = await lstat(path).then(
    (stats) => stats.isFile(),
    () => false,
  )
  return { stderrTail: isFile ? await readTail(path, STDERR_TAIL_BYTES).catch(() => '') : '' }
}

/**
 * Takes away what dead workers' runs may have filled the disk with, so that there is room to account for them: scratch
 * directories, what was printed, and what waited to be published. The end of stderr stays.
 * @param workBase `RESULT_BASEDIR/.work`
 * @returns of how many workers
 */
export async function emptyDeadWorkshops(workBase: string): Promise<number> {
  const found = await findDeadWorkshops(workBase)
  for (const dead of found) {
    // Else they would write on.
    await endWorkshop(dead)
    const names = await readdir(dead.path).catch((): string[] => [])
    for (const name of names.filter((each) => each.startsWith('.'))) await removeTree(join(dead.path, name))
    for (const run of dead.runs) await emptyRun(run)
  }
  return found.length
}

async function emptyRun(run: DeadRun): Promise<void> {
  await removeTree(join(run.path, 'scratch'))
  await removeTree(join(run.path, 'stdout.log'))
  const stderr = join(run.path, 'stderr.log')
  const { stderrTail } = await readRunEvidence(run)
  if (((await lstat(stderr).catch(() => undefined))?.size ?? 0) <= STDERR_TAIL_BYTES) return
  // By a rename: another worker may be reading it, or doing the same.
  const half = join(run.path, `.stderr.${randomBytes(4).toString('hex')}`)
  await writeFile(half, stderrTail, { flag: 'wx', mode: 0o600 })
    .then(() => rename(half, stderr))
    .catch(() => removeTree(half))
}

/** Removes the folder of a dead worker. Never throws: what cannot be removed is found again. */
export function removeWorkshop(dead: DeadWorkshop): Promise<void> {
  return removeFolder(dead.path)
}

/** By another name first, so that of several who do it at the same time one does it. */
async function removeFolder(path: string): Promise<void> {
  const gone = join(path, '..', `.gone-${basename(path).replace(HALF_NAME, '')}-${randomBytes(4).toString('hex')}`)
  await rename(path, gone).then(
    () => removeTree(gone),
    () => undefined,
  )
}
