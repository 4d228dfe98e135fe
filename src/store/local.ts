/**
 * Results in a local directory: `<base>/<first two digits of uuid>/<uuid>/` holds result.json, status.json, the logs
 * and the outputs of one job.
 *
 * Everything that can run out of space or be refused is done under temporary names (a leading dot, never served) before
 * any published name changes. Then, in this order, each step durable before the next: `beforeCommit` is asked, files and
 * status.json are renamed into place, `beforeCommit` is asked again, and result.json gets its name by link(2), which
 * cannot replace: the first result of a job is its result, whoever comes later.
 *
 * A publication holds the job's lock from before it looks until its last step. The lock of a dead process is broken, that
 * of a living one never, however long it is stopped: who is frozen between the question and the commit still overwrites
 * nothing, since nobody else publishes meanwhile. Only where it cannot be told whether the process lives (another
 * machine) does the lock's age decide.
 */

import { constants, type Stats } from 'node:fs'
import { access, type FileHandle, link, lstat, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { isUuid } from '../job/package.ts'
import { breakDeadLock, LOCK, takeLock } from './lock.ts'
import {
  checkPublication,
  checkUuid,
  errnoOf,
  isAbsence,
  isFileName,
  openSource,
  statOf,
  temporaryName,
} from './publication.ts'
import { type LocalStore, type Publication, type Publisher, type StoredFile, StoreError } from './store.ts'

/** Temporary files of a worker that died are swept from a job's directory when they are older than this. */
const STALE_MS = 3_600_000
/** A disk on which not even this has room is full. */
const PROBE_BYTES = 64 * 1024
/** The coarsest file systems count time in steps of two seconds. */
const SETTLED_MS = 2_000
const ALWAYS_READABLE = new Set(['result.json', 'status.json', 'stdout.log', 'stderr.log'])

/** Files whose bytes are made durable at the same time: disks commit neighbours together, and descriptors are few. */
const STAGED_AT_ONCE = 8

/** The base directory, with what is known about it. */
interface Base {
  readonly path: string
  readonly publisher: Publisher
  /** Directories of the first level that are durable, whoever made them. */
  readonly durable: Set<string>
  /** Device and inode at the first use: after an unmount another directory has its name. */
  identity: string | undefined
  /** texts of the locks that are held here */
  readonly locks: Set<string>
  /** whether the publisher's folder is good for staging */
  staging?: { readonly folder: string | undefined; readonly isUsable: boolean }
}

/** Bytes that wait, durable, for their published name. */
interface Staged {
  readonly name: string
  readonly path: string
}

const ANYBODY: Publisher = { identity: '', stateOf: () => 'unknown' }

export async function openLocal(baseDir: string, publisher: Publisher = ANYBODY): Promise<LocalStore> {
  const base: Base = { path: resolve(baseDir), publisher, durable: new Set(), identity: undefined, locks: new Set() }
  return {
    check: async () => {
      // What an unmount leaves is not to be written into, by a check either.
      const other = base.identity === undefined ? undefined : await checkIdentity(base).catch((error: Error) => error)
      if (other !== undefined) return [other.message]
      const problems = await checkBase(base.path)
      if (problems.length === 0) await checkIdentity(base)
      return problems
    },
    prepare: (uuid) => prepare(base, uuid),
    tidy: (uuid) => tidy(base, uuid),
    publish: (publication, beforeCommit) => publish(base, publication, beforeCommit),
    writeStatus: (uuid, status) => writeStatus(base, uuid, status),
    read: async (uuid, document) => {
      await checkIdentity(base)
      return readDocument(base.path, uuid, document)
    },
    find: (uuid, name, known) => find(base.path, uuid, name, known),
    close: async () => {},
  }
}

/** @throws StoreError when the base is no longer the directory that it was at the start */
async function checkIdentity(base: Base): Promise<void> {
  const { dev, ino } = await guard(base.path, () => stat(base.path))
  base.identity ??= `${dev}:${ino}`
  if (base.identity === `${dev}:${ino}`) return
  const message = `the result directory ${base.path} is not the one that it was at the start: mount its disk again, or restart the worker`
  throw new StoreError('unavailable', message)
}

async function prepare(base: Base, uuid: string): Promise<void> {
  checkUuid(uuid)
  await checkIdentity(base)
  const dir = jobDir(base.path, uuid)
  await guard(base.path, async () => {
    await makeJobDir(base, dir)
    await checkJobDir(dir)
    await access(dir, constants.W_OK | constants.X_OK)
  })
}

/** @throws StoreError when what is published there would never be served */
async function checkJobDir(dir: string): Promise<void> {
  for (const path of [dirname(dir), dir]) {
    if ((await lstat(path)).isDirectory()) continue
    const remedy = 'results below it are never served; put a directory in its place'
    throw new StoreError('failed', `${path} is a link or no directory: ${remedy}`)
  }
}

async function publish(
  base: Base,
  publication: Publication,
  beforeCommit: () => Promise<boolean> = async () => true,
): Promise<boolean> {
  checkPublication(publication)
  await checkIdentity(base)
  const { uuid } = publication
  const dir = jobDir(base.path, uuid)
  const staged: Staged[] = []
  let unlock = async () => {}
  try {
    const committed = await guard(base.path, async () => {
      await makeJobDir(base, dir)
      // An algorithm may have put something else there since it was prepared.
      await checkJobDir(dir)
      unlock = await lockJob(base, dir)
      return (await statOf(join(dir, 'result.json'))) !== undefined
    })
    // The job is complete: nothing that comes later may change or contradict it.
    if (committed) return false
    await guard(base.path, () => stage(base, dir, publication, staged))
    if (!(await beforeCommit())) return false
    const { files, status, commit } = inOrder(staged)
    await guard(base.path, async () => {
      for (const file of [...files, ...status]) await moveInto(dir, file, staged)
      await syncDirectories(base, dir)
    })
    if (commit === undefined) return true
    if (!(await beforeCommit())) return false
    return await guard(base.path, async () => {
      await removeLeftovers(dir, new Set([...staged.map(({ name }) => name), LOCK]))
      if (!(await commitResult(dir, commit))) return false
      await syncDirectory(dir)
      return true
    })
  } finally {
    await removeTemporaries(staged)
    await unlock()
  }
}

/** False when there is a result already. */
async function commitResult(dir: string, commit: Staged): Promise<boolean> {
  try {
    await link(commit.path, join(dir, commit.name))
    return true
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false
    throw error
  }
}

/** One publication of a job at a time: two workers with one result directory may have the same uuid in hand. */
async function lockJob(base: Base, dir: string): Promise<() => Promise<void>> {
  return takeLock(join(dir, LOCK), await openTemporary(base, dir), base)
}

/** Only a lock can be left: what is published is staged elsewhere. That of a living publisher stays, and is not waited for. */
async function tidy(base: Base, uuid: string): Promise<void> {
  checkUuid(uuid)
  await guard(base.path, () => breakDeadLock(base, join(jobDir(base.path, uuid), LOCK)))
}

function inOrder(staged: readonly Staged[]): { files: Staged[]; status: Staged[]; commit: Staged | undefined } {
  return {
    files: staged.filter(({ name }) => name !== 'status.json' && name !== 'result.json'),
    status: staged.filter(({ name }) => name === 'status.json'),
    commit: staged.find(({ name }) => name === 'result.json'),
  }
}

async function writeStatus(base: Base, uuid: string, status: string): Promise<void> {
  checkUuid(uuid)
  const dir = jobDir(base.path, uuid)
  const staged: Staged[] = []
  try {
    await guard(base.path, async () => {
      await makeJobDir(base, dir)
      await stageText(base, dir, 'status.json', status, staged)
      for (const file of [...staged]) await moveInto(dir, file, staged)
      await syncDirectories(base, dir)
    })
  } finally {
    await removeTemporaries(staged)
  }
}

async function readDocument(base: string, uuid: string, document: string): Promise<string | undefined> {
  if (!isUuid(uuid)) return undefined
  const dir = jobDir(base, uuid)
  return guard(base, async () => {
    let handle: FileHandle
    try {
      // As in `find`: nothing behind a link is ours, on any level.
      const folders = await Promise.all([lstat(dirname(dir)), lstat(dir)])
      if (folders.some((folder) => !folder.isDirectory())) return undefined
      // NONBLOCK: without it the open of a named pipe waits for a writer, and takes a thread with it.
      handle = await open(join(dir, document), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    } catch (error) {
      if (!isAbsence(error)) throw error
      await stat(base)
      return undefined
    }
    try {
      return (await handle.stat()).isFile() ? await handle.readFile('utf8') : undefined
    } finally {
      await handle.close()
    }
  })
}

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

/** Makes the two levels below the base, and never the base: a disk that is not mounted must not be written beside. */
async function makeJobDir(base: Base, dir: string): Promise<void> {
  const shard = dirname(dir)
  if (await makeDirectory(shard)) base.durable.delete(shard)
  await makeDirectory(dir)
}

/** Resolves to false when it is there already. */
async function makeDirectory(path: string): Promise<boolean> {
  try {
    await mkdir(path)
    return true
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error
    return false
  }
}

/** Brings all that is to be published onto the store's disk; what it makes is added to `staged` at once. */
async function stage(base: Base, dir: string, publication: Publication, staged: Staged[]): Promise<void> {
  const device = (await stat(dir)).dev
  const { files, status, result } = publication
  const work = [...files].map(
    ([name, source]) =>
      () =>
        stageFile(base, dir, name, source, device, staged),
  )
  work.push(() => stageText(base, dir, 'status.json', status, staged))
  if (result !== undefined) work.push(() => stageText(base, dir, 'result.json', result, staged))
  for (let i = 0; i < work.length; i += STAGED_AT_ONCE) {
    const ended = await Promise.allSettled(work.slice(i, i + STAGED_AT_ONCE).map((begin) => begin()))
    for (const end of ended) if (end.status === 'rejected') throw end.reason
  }
}

async function stageFile(
  base: Base,
  dir: string,
  name: string,
  source: string,
  device: number,
  staged: Staged[],
): Promise<void> {
  const handle = await openSource(name, source)
  try {
    if ((await handle.stat()).dev !== device) {
      await writeTemporary(base, dir, name, handle.createReadStream({ autoClose: false }), staged)
      return
    }
    await handle.sync()
    staged.push({ name, path: source })
  } finally {
    await handle.close()
  }
}

async function stageText(base: Base, dir: string, name: string, text: string, staged: Staged[]): Promise<void> {
  await writeTemporary(base, dir, name, [Buffer.from(text)], staged)
}

async function writeTemporary(
  base: Base | undefined,
  dir: string,
  name: string,
  chunks: Iterable<Buffer> | AsyncIterable<Buffer>,
  staged: Staged[],
): Promise<void> {
  const { path, handle } = await openTemporary(base, dir)
  staged.push({ name, path })
  try {
    for await (const chunk of chunks) await writeWhole(handle, chunk)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** In the publisher's folder; in the job's own where there is none, it is gone, or on another disk. */
async function openTemporary(base: Base | undefined, dir: string): Promise<{ path: string; handle: FileHandle }> {
  const staging = base === undefined ? undefined : await findStaging(base)
  const name = temporaryName()
  if (staging !== undefined) {
    const path = join(staging, name)
    const handle = await open(path, 'wx').catch((error: unknown) => {
      if (errnoOf(error) !== 'ENOENT') throw error
      return undefined
    })
    if (handle !== undefined) return { path, handle }
  }
  const path = join(dir, name)
  return { path, handle: await open(path, 'wx') }
}

/** Tried once: two mounts of one disk have one device number and still refuse a link from one to the other. */
async function findStaging(base: Base): Promise<string | undefined> {
  const { staging } = base.publisher
  if (staging === undefined || base.staging?.folder !== staging) {
    const probe = temporaryName()
    const isUsable = staging !== undefined && (await canLink(join(staging, probe), join(base.path, probe)))
    base.staging = { folder: staging, isUsable }
  }
  return base.staging.isUsable ? staging : undefined
}

async function canLink(from: string, to: string): Promise<boolean> {
  try {
    await (await open(from, 'wx')).close()
    await link(from, to)
    return true
  } catch {
    return false
  } finally {
    for (const path of [from, to]) await rm(path, { force: true }).catch(() => undefined)
  }
}

async function writeWhole(handle: FileHandle, chunk: Buffer): Promise<void> {
  let done = 0
  while (done < chunk.length) done += (await handle.write(chunk, done)).bytesWritten
}

/** Two mounts of one disk have one device number and still refuse the rename. */
async function moveInto(dir: string, file: Staged, staged: Staged[]): Promise<void> {
  const target = join(dir, file.name)
  try {
    await rename(file.path, target)
    return
  } catch (error) {
    if (errnoOf(error) === 'EISDIR') {
      // A folder of that name is nothing of ours.
      await rm(target, { recursive: true, force: true })
      return rename(file.path, target)
    }
    if (errnoOf(error) !== 'EXDEV') throw error
  }
  const handle = await openSource(file.name, file.path)
  const copies: Staged[] = []
  try {
    await writeTemporary(undefined, dir, file.name, handle.createReadStream({ autoClose: false }), copies)
  } finally {
    staged.push(...copies)
    await handle.close()
  }
  for (const copy of copies) await rename(copy.path, target)
}

/** Removes what an earlier, half-done publication of the job left, so that only listed files are served. */
async function removeLeftovers(dir: string, wanted: ReadonlySet<string>): Promise<void> {
  for (const name of await readdir(dir)) {
    const path = join(dir, name)
    if (wanted.has(name)) continue
    if (name.startsWith('.') && ((await statOf(path))?.mtimeMs ?? 0) > Date.now() - STALE_MS) continue
    await rm(path, { recursive: true, force: true })
  }
}

async function removeTemporaries(staged: readonly Staged[]): Promise<void> {
  for (const { path } of staged) if (isTemporary(path)) await rm(path, { force: true }).catch(() => {})
}

async function syncDirectories(base: Base, dir: string): Promise<void> {
  const shard = dirname(dir)
  const isNew = !base.durable.has(shard)
  await Promise.all([dir, shard, ...(isNew ? [base.path] : [])].map(syncDirectory))
  base.durable.add(shard)
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

function isTemporary(path: string): boolean {
  return /\/\.[0-9a-f]{16}\.tmp$/.test(path)
}

async function checkBase(base: string): Promise<string[]> {
  const make = `create it with: mkdir -p ${shellWord(base)}`
  try {
    if (!(await stat(base)).isDirectory())
      return [`the result directory ${base} is not a directory; move it away, then ${make}`]
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [`the result directory ${base} does not exist; ${make}`]
    return [storeError(base, error).message]
  }
  await removeProbes(base)
  // Really written: the superuser passes every question about permissions, on a read-only disk too.
  const probe = join(base, temporaryName())
  const second = join(base, temporaryName())
  try {
    const handle = await open(probe, 'wx')
    await handle.writeFile(Buffer.alloc(PROBE_BYTES)).finally(() => handle.close())
    const hasLinks = await link(probe, second).then(
      () => true,
      (error) => !['EPERM', 'ENOTSUP', 'EMLINK', 'ENOSYS'].includes(errnoOf(error)),
    )
    if (!hasLinks)
      return [`the file system of ${base} knows no hard links, which results are committed by; use another`]
    return await checkWorkDir(join(base, '.work'))
  } catch (error) {
    return [storeError(base, error).message]
  } finally {
    for (const path of [probe, second]) await rm(path, { force: true }).catch(() => {})
  }
}

/**
 * Probes of workers that were killed in the middle of one. That of a living one may be among them: who has made its
 * probe has learnt what it wanted to know, whoever removes it.
 */
async function removeProbes(base: string): Promise<void> {
  const names = await readdir(base).catch((): string[] => [])
  for (const name of names.filter((entry) => isTemporary(`/${entry}`)))
    await rm(join(base, name), { force: true }).catch(() => {})
}

/**
 * Scratch directories of runs lie on the same disk, so that outputs are published by a rename. It is not made here: who
 * only checks may be another user than the worker.
 */
async function checkWorkDir(path: string): Promise<string[]> {
  const stats = await statOf(path)
  if (stats === undefined) return []
  const advice = `${path} is not a directory; it is for scratch directories of runs: remove it, the worker creates it`
  if (!(await stat(path)).isDirectory()) return [advice]
  await access(path, constants.R_OK | constants.W_OK | constants.X_OK)
  return []
}

function shellWord(text: string): string {
  return /^[A-Za-z0-9_./:@%+,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
}

async function guard<T>(base: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw error instanceof StoreError ? error : storeError(base, error)
  }
}

function storeError(base: string, cause: unknown): StoreError {
  const code = errnoOf(cause)
  const path = (cause as NodeJS.ErrnoException | undefined)?.path ?? base
  switch (code) {
    case 'ENOSPC':
      return new StoreError(
        'full',
        `the disk of the result directory ${base} is full (${code}); free space on it`,
        cause,
      )
    case 'EDQUOT':
      return new StoreError('full', `the disk quota for ${base} is used up (${code}); raise it or free space`, cause)
    case 'EROFS':
      return new StoreError(
        'denied',
        `the result directory ${base} is on a read-only disk (${code}); mount it writable`,
        cause,
      )
    case 'EACCES':
    case 'EPERM':
      return new StoreError(
        'denied',
        `no permission for ${path} (${code}); let the worker's user read and write all below ${base}`,
        cause,
      )
    case 'ENOENT':
    case 'ENOTDIR':
      return new StoreError(
        'unavailable',
        `${path} is not there or not a directory (${code}); see that the result directory ${base} exists and is mounted`,
        cause,
      )
    case 'EMFILE':
    case 'ENFILE':
      return new StoreError(
        'unavailable',
        `too many open files to use ${path} (${code}); raise the limit (ulimit -n)`,
        cause,
      )
    case 'EIO':
      return new StoreError('unavailable', `the disk failed at ${path} (${code}); see the system's log`, cause)
    default: {
      const reason = cause instanceof Error ? cause.message : String(cause)
      return new StoreError('failed', `the result directory ${base} could not be used: ${reason}`, cause)
    }
  }
}
