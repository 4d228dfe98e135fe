/**
 * The folder of one worker process, which holds the directories of its runs:
 *
 *     RESULT_BASEDIR/.work/<worker id>/worker.json     whose it is
 *                                      ended.json      how its runs were ended after its death (by its guard)
 *                                      <uuid>.<attempt>.<time, base 36>/     one run (workdir.ts)
 *
 * A worker that dies leaves it. Whoever comes next ends what is left of its runs, takes the evidence, and removes it;
 * two may do so at the same time. What belongs to a worker that lives, or of which that cannot be told, is left alone.
 * A folder is never seen without its worker.json: it gets its name by a rename. Should somebody remove `.work` under a
 * living worker, its folder comes back with the next run, and its worker.json within half a minute; a folder without one
 * is nobody's only after ten minutes, and only when no process works in it.
 */

import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { lstat, mkdir, readdir, readFile, realpath, rename, stat, writeFile } from 'node:fs/promises'
import { basename, isAbsolute, join } from 'node:path'
import type { KillReceipt } from '../job/outcome.ts'
import { removeGroups } from './cgroup.ts'
import { findProcesses, killRuns } from './kill.ts'
import { hasProc } from './look.ts'
import { asLocal, isNumberFree, isPresent, ownPresence } from './presence.ts'
import { readTail, removeTree, STDERR_TAIL_BYTES } from './workdir.ts'

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
const WORKSHOP_NAME = /^w(\d+)-[0-9a-z]+-[0-9a-f]{8}$/
const RUN_NAME = /^([0-9a-f]{32})\.(\d+)\.([0-9a-z]+)$/
/** Version 0.1: `<uuid>.<attempt>.<pid of the worker>.<time>`, right below `.work`. */
const OLD_RUN_NAME = /^([0-9a-f]{32})\.(\d+)\.(\d+)\.([0-9a-z]+)$/
/** In the making, or being removed. */
const HALF_NAME = /^\.(new|gone)-/
const OWNERLESS_MS = 600_000
const RESTORE_MS = 30_000
/** A process that is between fork and exec has no trace yet. */
export const LOOK_AGAIN_MS = [100, 400]

/**
 * Makes the folder of this worker process.
 * @param workBase `RESULT_BASEDIR/.work`; made when it is not there, but nothing above it
 * @param name of the worker, for people
 * @param cgroupBase see Workshop
 * @throws what the file system throws
 */
export async function openWorkshop(workBase: string, name: string, cgroupBase?: string): Promise<Workshop> {
  await mkdir(workBase, { mode: 0o700 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error
  })
  const id = `w${process.pid}-${Date.now().toString(36)}-${randomBytes(4).toString('hex')}`
  const base = await realpath(workBase)
  const path = join(base, id)
  const owner: Owner = { presence: ownPresence(), name, started: new Date().toISOString(), cgroupBase }
  const half = join(base, `.new-${id}`)
  try {
    await mkdir(half, { mode: 0o700 })
    await writeDocument(half, OWNER_FILE, owner)
    await rename(half, path)
  } catch (error) {
    await removeTree(half)
    throw error
  }
  const restoring = setInterval(() => void restoreOwner(path, owner), RESTORE_MS).unref()
  return {
    id,
    path,
    presence: owner.presence,
    cgroupBase,
    async close() {
      clearInterval(restoring)
      if ((await listRuns(path)).length === 0) await removeFolder(path)
    },
  }
}

async function restoreOwner(path: string, owner: Owner): Promise<void> {
  const file = join(path, OWNER_FILE)
  const isThere = await stat(file).catch(() => undefined)
  // Without its folder this fails, and need not be.
  if (isThere === undefined) await writeDocument(path, OWNER_FILE, owner).catch(() => undefined)
}

/** Atomic: by a rename. */
async function writeDocument(folder: string, name: string, document: object): Promise<void> {
  const half = join(folder, `.${name}.${randomBytes(4).toString('hex')}`)
  await writeFile(half, `${JSON.stringify(document)}\n`, { flag: 'wx', mode: 0o600 })
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

async function inspect(path: string): Promise<DeadWorkshop | undefined> {
  const id = basename(path)
  if (WORKSHOP_NAME.test(id)) {
    if (await isUnreadable(join(path, OWNER_FILE))) return undefined
    const owner = await readOwner(path)
    const isDead = owner === undefined ? await isAbandoned(path) : isPresent(owner.presence) === 'dead'
    return isDead ? { path, id, owner, runs: await listRuns(path) } : undefined
  }
  const run = makeRun(path, OLD_RUN_NAME)
  if (run === undefined && !HALF_NAME.test(id)) return undefined
  return (await isAbandoned(path)) ? { path, id, owner: undefined, runs: run === undefined ? [] : [run] } : undefined
}

/** Another user's, or a fault of the disk: that nobody owns it cannot be told. */
async function isUnreadable(path: string): Promise<boolean> {
  return readFile(path).then(
    () => false,
    (error: NodeJS.ErrnoException) => error.code !== 'ENOENT',
  )
}

async function readOwner(path: string): Promise<Owner | undefined> {
  const owner = await readDocument<Owner>(path, OWNER_FILE)
  if (typeof owner?.presence !== 'string') return undefined
  const cgroupBase = typeof owner.cgroupBase === 'string' ? owner.cgroupBase : undefined
  return { presence: owner.presence, name: String(owner.name), started: String(owner.started), cgroupBase }
}

async function readDocument<T>(folder: string, name: string): Promise<Partial<T> | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(join(folder, name), 'utf8'))
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
  const pid = WORKSHOP_NAME.exec(id)?.[1] ?? OLD_RUN_NAME.exec(id)?.[3]
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
  const ended = await readDocument<{ ended: string; receipt: KillReceipt }>(dead.path, END_FILE)
  const byGuard = Array.isArray(ended?.receipt?.survivors) ? ended?.receipt : undefined
  const pauses = byGuard === undefined ? LOOK_AGAIN_MS : []
  const own = dead.owner === undefined ? NOTHING_DONE : await endRunsOf(dead.id, dead.path, dead.owner, pauses)
  if (byGuard === undefined) return { receipt: own, guardEnded: undefined }
  const receipt = own.signals.length > 0 ? own : { ...byGuard, survivors: own.survivors }
  return { receipt, guardEnded: String(ended?.ended) }
}

/** Whether the worker with this id lives, as far as its folder tells; `dead` when there is no such folder. */
export async function stateOfWorker(workBase: string, id: string): Promise<'alive' | 'dead' | 'unknown'> {
  if (!WORKSHOP_NAME.test(id)) return 'unknown'
  const path = join(workBase, id)
  const owner = await readOwner(path)
  if (owner !== undefined) return isPresent(owner.presence)
  const isThere = await stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== 'ENOENT',
  )
  return isThere ? 'unknown' : 'dead'
}

/** Ends one run of another worker that lives and does not do it: one that is stopped, or hangs. */
export async function endRunOf(workBase: string, id: string, run: string): Promise<KillReceipt | undefined> {
  if (!hasProc || !WORKSHOP_NAME.test(id) || !RUN_NAME.test(run)) return undefined
  const base = await realpath(workBase).catch(() => undefined)
  const owner = base === undefined ? undefined : await readOwner(join(base, id))
  const local = owner === undefined ? undefined : asLocal(owner.presence)
  if (base === undefined || local === undefined) return undefined
  const [uuid, attempt] = run.split('.')
  const mark = `${id}.${uuid}.${attempt}.`
  const { startTicks } = local
  return killRuns({ pid: undefined, mark, workdir: join(base, id, run), startTicks, ...groupsOf(owner) }, [])
}

const NOTHING_DONE: KillReceipt = { signals: [], duration_ms: 0, survivors: [], method: hasProc ? 'proc' : 'tree' }

type Owning = Pick<Owner, 'presence' | 'cgroupBase'>

/** Read from a file, it is to be a folder of control groups; what else it may be is left alone, by the names in it. */
function groupsOf(owner: Owning | undefined): { cgroupBase?: string } {
  const path = owner?.cgroupBase
  return path !== undefined && isAbsolute(path) && existsSync(join(path, 'cgroup.procs')) ? { cgroupBase: path } : {}
}

async function endRunsOf(id: string, path: string, owner: Owning, pauses: readonly number[]): Promise<KillReceipt> {
  const local = asLocal(owner.presence)
  if (local === undefined || isPresent(owner.presence) !== 'dead') return NOTHING_DONE
  // By this folder and this mark processes are killed: neither may be short by mistake.
  if (!isAbsolute(path) || basename(path) !== id || !WORKSHOP_NAME.test(id)) return NOTHING_DONE
  const { startTicks } = local
  const runs = { pid: undefined, mark: markOf(id), workdir: path, startTicks, ...groupsOf(owner) }
  const receipt = await killRuns(runs, pauses)
  await removeGroups(runs)
  return receipt
}

/**
 * What the guard of a worker does after the worker's death. Its receipt stays in the folder for whoever accounts for
 * the runs; a folder without runs is removed.
 * @param cgroupBase see Workshop; none: undefined or empty
 * @returns undefined when this is no folder of a dead worker: nothing was done
 */
export async function endForDeadWorker(
  path: string,
  id: string,
  presence: string,
  cgroupBase?: string,
): Promise<KillReceipt | undefined> {
  if (!isAbsolute(path) || basename(path) !== id || !WORKSHOP_NAME.test(id)) return undefined
  const owner = await readOwner(path)
  // A run may have removed the folder with all in it: its processes are ended all the same.
  if (owner !== undefined && owner.presence !== presence) return undefined
  if (asLocal(presence) === undefined || isPresent(presence) !== 'dead') return undefined
  const receipt = await endRunsOf(id, path, { presence, cgroupBase }, LOOK_AGAIN_MS)
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
