/**
 * Results in a local directory: `<base>/<first two digits of uuid>/<uuid>/` holds result.json, status.json, the logs
 * and the outputs of one job.
 *
 * The first publication of a job, which is the usual one, is that of its whole directory (`whole.ts`). What stands here
 * adds to a directory that is there: an attempt failed before, or another worker was quicker.
 *
 * Everything that can run out of space or be refused is done under temporary names (a leading dot, never served) before
 * any published name changes. Then, in this order, each step durable before the next: `beforeCommit` is asked, files and
 * status.json are renamed into place, `beforeCommit` is asked again, and result.json gets its name by link(2), which
 * cannot replace: the first result of a job is its result, whoever comes later. `durable.ts` says what is synced, and why.
 *
 * Such a publication holds the job's lock from before it looks until its last step. The lock of a dead process is broken, that
 * of a living one never, however long it is stopped: who is frozen between the question and the commit still overwrites
 * nothing, since nobody else publishes meanwhile. Only where it cannot be told whether the process lives (another
 * machine) does the lock's age decide.
 */

import {
  accessSync,
  closeSync,
  constants,
  fstatSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFile,
  readFileSync,
  type Stats,
  statSync,
} from 'node:fs'
import { readdir, rm, stat } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { isUuid } from '../job/package.ts'
import { sync } from './durable.ts'
import { breakDeadLock, LOCK, takeLock } from './lock.ts'
import { checkBase, guard } from './place.ts'
import {
  checkPublication,
  checkUuid,
  errnoOf,
  isAbsence,
  isFileName,
  lookAt,
  READ_FLAGS,
  statOf,
  temporaryName,
} from './publication.ts'
import {
  closeStage,
  nameFiles,
  nameResult,
  openStage,
  removeFile,
  type Stage,
  type Staged,
  stageAll,
  stageStatus,
} from './staging.ts'
import { type LocalStore, type Publication, type Publisher, type StoredFile, StoreError } from './store.ts'
import { closeWhole, fillWhole, nameWhole, openWhole, type Whole } from './whole.ts'

/** Temporary files of a worker that died are swept from a job's directory when they are older than this. */
const STALE_MS = 3_600_000
/** The coarsest file systems count time in steps of two seconds. */
const SETTLED_MS = 2_000
const ALWAYS_READABLE = new Set(['result.json', 'status.json', 'stdout.log', 'stderr.log'])
/** More than this is read, or listed, by the thread pool. */
const READ_AT_ONCE = 64 * 1024
const LISTED_AT_ONCE = 256

/** The base directory, with what is known about it. */
interface Base {
  readonly path: string
  readonly publisher: Publisher
  /** Directories of the first level that are durable, whoever made them. */
  readonly durable: Set<string>
  /** Device and inode at the first use: after an unmount another directory has its name. */
  identity: { readonly dev: number; readonly ino: number } | undefined
  /** texts of the locks that are held here */
  readonly locks: Set<string>
  /** whether the publisher's folder is good for staging */
  staging?: { readonly folder: string | undefined; readonly isUsable: boolean }
}

const ANYBODY: Publisher = { identity: '', stateOf: () => 'unknown' }

export async function openLocal(baseDir: string, publisher: Publisher = ANYBODY): Promise<LocalStore> {
  const base: Base = { path: resolve(baseDir), publisher, durable: new Set(), identity: undefined, locks: new Set() }
  return {
    check: () => check(base),
    prepare: (uuid) => prepare(base, uuid),
    tidy: (uuid) => tidy(base, uuid),
    publish: (publication, beforeCommit) => publish(base, publication, beforeCommit),
    writeStatus: (uuid, status) => writeStatus(base, uuid, status),
    read: (uuid, document) => read(base, uuid, document),
    find: (uuid, name, known) => find(base.path, uuid, name, known),
    close: async () => {},
  }
}

async function check(base: Base): Promise<string[]> {
  const checkNow = () => guard(base.path, async () => checkIdentity(base))
  // What an unmount leaves is not to be written into, by a check either.
  const other = base.identity === undefined ? undefined : await checkNow().catch((error: Error) => error)
  if (other !== undefined) return [other.message]
  const problems = await checkBase(base.path)
  if (problems.length === 0) await checkNow()
  return problems
}

/** @throws StoreError when the base is no longer the directory that it was at the start */
function checkIdentity(base: Base): void {
  const { dev, ino } = statSync(base.path)
  base.identity ??= { dev, ino }
  if (base.identity.dev === dev && base.identity.ino === ino) return
  const message = `the result directory ${base.path} is not the one that it was at the start: mount its disk again, or restart the worker`
  throw new StoreError('unavailable', message)
}

async function prepare(base: Base, uuid: string): Promise<void> {
  checkUuid(uuid)
  await guard(base.path, async () => {
    checkIdentity(base)
    const dir = jobDir(base.path, uuid)
    makeShard(base, dir)
    const stats = lookAt(dir)
    if (stats !== undefined) checkDirectory(dir, stats)
    accessSync(stats === undefined ? dirname(dir) : dir, constants.W_OK | constants.X_OK)
  })
}

async function publish(
  base: Base,
  publication: Publication,
  beforeCommit: () => Promise<boolean> = async () => true,
): Promise<boolean> {
  checkPublication(publication)
  const whole = await guard(base.path, async () => startWhole(base, publication.uuid))
  return whole === undefined
    ? publishInto(base, publication, beforeCommit)
    : publishWhole(base, whole, publication, beforeCommit)
}

/** Undefined where the job has a directory, or where none can be filled aside. */
function startWhole(base: Base, uuid: string): Whole | undefined {
  checkIdentity(base)
  const dir = jobDir(base.path, uuid)
  if (lookAt(dir) !== undefined) return undefined
  // Looked at again: an algorithm may have put something else there since it was prepared.
  const shard = makeShard(base, dir)
  const folder = findStaging(base)
  return folder === undefined ? undefined : openWhole(folder, shard)
}

async function publishWhole(
  base: Base,
  whole: Whole,
  publication: Publication,
  beforeCommit: () => Promise<boolean>,
): Promise<boolean> {
  const dir = jobDir(base.path, publication.uuid)
  let isNamed = false
  try {
    await guard(base.path, () => fillWhole(whole, publication))
    if (!(await beforeCommit())) return false
    isNamed = await guard(base.path, async () => nameWhole(whole, dir))
    if (isNamed) {
      await guard(base.path, () => syncShard(base, dir))
      return true
    }
    // Another worker was there first, or the shard was removed.
    const files = new Map([...publication.files.keys()].map((name) => [name, join(whole.path, name)]))
    return await publishInto(base, { ...publication, files }, beforeCommit)
  } finally {
    if (!isNamed) await closeWhole(whole)
  }
}

async function publishInto(
  base: Base,
  publication: Publication,
  beforeCommit: () => Promise<boolean>,
): Promise<boolean> {
  const dir = jobDir(base.path, publication.uuid)
  let stage: Stage | undefined
  let unlock = () => {}
  try {
    stage = await guard(base.path, async () => {
      checkIdentity(base)
      // Looked at again: an algorithm may have put something else there since it was prepared.
      const { dev } = makeJobDir(base, dir)
      unlock = await takeLock(join(dir, LOCK), base)
      // The job is complete: nothing that comes later may change or contradict it.
      if (lookAt(join(dir, 'result.json')) !== undefined) return undefined
      return openStage(dir, dev, findStaging(base))
    })
    if (stage === undefined) return false
    const open = stage
    const isFirst = lookAt(join(dir, 'status.json')) === undefined
    await guard(base.path, async () => {
      await stageAll(open, publication)
      if (!isFirst) await sync(open.unsynced)
    })
    if (!(await beforeCommit())) return false
    await guard(base.path, async () => {
      await nameFiles(open)
      await syncJobDir(base, dir, open.unsynced)
    })
    const { result } = open
    if (result === undefined) return true
    if (!(await beforeCommit())) return false
    return await guard(base.path, () => commit(open, result))
  } finally {
    unlock()
    if (stage !== undefined) closeStage(stage)
  }
}

/** False when there is a result already. */
async function commit(stage: Stage, result: Staged): Promise<boolean> {
  await removeLeftovers(stage)
  if (!nameResult(stage, result)) return false
  await sync([], [stage.dir])
  return true
}

/**
 * Only a lock can be left: what is published is staged elsewhere. That of a living publisher stays, and is not waited
 * for. Of a result that is there nobody may know whether it is durable.
 */
async function tidy(base: Base, uuid: string): Promise<void> {
  checkUuid(uuid)
  const dir = jobDir(base.path, uuid)
  await guard(base.path, async () => {
    await breakDeadLock(base, join(dir, LOCK))
    if (lookAt(join(dir, 'result.json')) !== undefined) await syncJobDir(base, dir)
  })
}

async function writeStatus(base: Base, uuid: string, status: string): Promise<void> {
  checkUuid(uuid)
  const dir = jobDir(base.path, uuid)
  await guard(base.path, async () => {
    const stage = openStage(dir, makeJobDir(base, dir).dev, findStaging(base))
    try {
      await stageStatus(stage, status)
      await sync(stage.unsynced)
      await nameFiles(stage)
      await syncJobDir(base, dir)
    } finally {
      closeStage(stage)
    }
  })
}

async function read(base: Base, uuid: string, document: string): Promise<string | undefined> {
  return guard(base.path, async () => {
    checkIdentity(base)
    if (!isUuid(uuid)) return undefined
    const dir = jobDir(base.path, uuid)
    const path = join(dir, document)
    // As in `find`: nothing behind a link is ours, on any level.
    if (!lookAt(dir)?.isDirectory() || !lookAt(dirname(dir))?.isDirectory() || !lookAt(path)?.isFile()) return undefined
    return readDocument(path)
  })
}

async function readDocument(path: string): Promise<string | undefined> {
  let descriptor: number
  try {
    descriptor = openSync(path, READ_FLAGS)
  } catch (error) {
    if (isAbsence(error)) return undefined
    throw error
  }
  try {
    const stats = fstatSync(descriptor)
    if (!stats.isFile()) return undefined
    return stats.size <= READ_AT_ONCE ? readFileSync(descriptor, 'utf8') : await readWhole(descriptor, 'utf8')
  } finally {
    closeSync(descriptor)
  }
}

const readWhole = promisify(readFile)

/** For those who ask over HTTP: however long a disk takes, the loop goes on. */
async function find(
  base: string,
  uuid: string,
  name: string,
  known: StoredFile | undefined,
): Promise<StoredFile | undefined> {
  if (known?.version !== undefined && (await isUnchanged(base, known))) return known
  if (!isUuid(uuid) || !isFileName(name)) return undefined
  const dir = jobDir(base, uuid)
  const path = join(dir, name)
  return guard(base, async () => {
    const [shard, job, file] = await Promise.all([statOf(dirname(dir)), statOf(dir), statOf(path)])
    if (!file) await stat(base)
    if (!shard?.isDirectory() || !job?.isDirectory() || !file?.isFile()) return undefined
    if (!ALWAYS_READABLE.has(name) && !(await statOf(join(dir, 'result.json')))?.isFile()) return undefined
    return { path, bytes: file.size, modified: file.mtime, version: versionOf(file) }
  })
}

/** The folders on the way are not looked at: whatever they are now, they lead to the very file that was found. */
async function isUnchanged(base: string, { path, version }: StoredFile): Promise<boolean> {
  const stats = await guard(base, () => statOf(path))
  return stats !== undefined && versionOf(stats) === version
}

/** Whoever sets the time of a file back changes the time of that change. */
function versionOf({ dev, ino, size, mtimeMs, ctimeMs }: Stats): string | undefined {
  if (Date.now() - ctimeMs < SETTLED_MS) return undefined
  return `${dev}:${ino}:${size}:${mtimeMs}:${ctimeMs}`
}

function jobDir(base: string, uuid: string): string {
  return join(base, uuid.slice(0, 2), uuid)
}

/**
 * Makes the two levels below the base, and never the base: a disk that is not mounted must not be written beside.
 * @returns what is known of the job's directory
 * @throws StoreError when what is published there would never be served
 */
function makeJobDir(base: Base, dir: string): Stats {
  makeShard(base, dir)
  return haveDirectory(dir, () => undefined)
}

/** The directory that has those of the jobs. */
function makeShard(base: Base, dir: string): Stats {
  const shard = dirname(dir)
  return haveDirectory(shard, () => base.durable.delete(shard))
}

/** @param onAbsent told before it is made, by us or by another worker at the same time */
function haveDirectory(path: string, onAbsent: () => void): Stats {
  let stats = lookAt(path)
  if (stats === undefined) {
    onAbsent()
    makeDirectory(path)
    stats = lstatSync(path)
  }
  checkDirectory(path, stats)
  return stats
}

function checkDirectory(path: string, stats: Stats): void {
  if (stats.isDirectory()) return
  const remedy = 'results below it are never served; put a directory in its place'
  throw new StoreError('failed', `${path} is a link or no directory: ${remedy}`)
}

function makeDirectory(path: string): void {
  try {
    mkdirSync(path)
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error
  }
}

/** Tried once: two mounts of one disk have one device number and still refuse a link from one to the other. */
function findStaging(base: Base): string | undefined {
  const { staging } = base.publisher
  if (staging === undefined || base.staging?.folder !== staging) {
    const probe = temporaryName()
    const isUsable = staging !== undefined && canLink(join(staging, probe), join(base.path, probe))
    base.staging = { folder: staging, isUsable }
  }
  return base.staging?.isUsable ? staging : undefined
}

function canLink(from: string, to: string): boolean {
  try {
    closeSync(openSync(from, 'wx'))
    linkSync(from, to)
    return true
  } catch {
    return false
  } finally {
    for (const path of [from, to]) removeFile(path)
  }
}

/** Removes what an earlier, half-done publication of the job left, so that only listed files are served. */
async function removeLeftovers({ dir, files }: Stage): Promise<void> {
  const wanted = new Set([...files.map(({ name }) => name), LOCK])
  for (const name of files.length > LISTED_AT_ONCE ? await readdir(dir) : readdirSync(dir)) {
    const path = join(dir, name)
    if (wanted.has(name)) continue
    if (name.startsWith('.') && (lookAt(path)?.mtimeMs ?? 0) > Date.now() - STALE_MS) continue
    await rm(path, { recursive: true, force: true })
  }
}

/** The names in a job's directory, and its own. @param files descriptors whose bytes are made durable with them */
function syncJobDir(base: Base, dir: string, files: number[] = []): Promise<void> {
  return syncShard(base, dir, files, [dir])
}

/** The name of a job's directory, and what else is given. */
async function syncShard(base: Base, dir: string, files: number[] = [], directories: string[] = []): Promise<void> {
  const shard = dirname(dir)
  await sync(files, [...directories, shard, ...(base.durable.has(shard) ? [] : [base.path])])
  base.durable.add(shard)
}
