/**
 * One directory per run, below the worker's own `RESULT_BASEDIR/.work/<worker id>`:
 *
 *     <run>/stdout.log  stderr.log     the streams, written by the processes themselves: no pipe of ours to fill or close
 *     <run>/scratch/                   the algorithm's working directory, with input.json
 */

import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  createReadStream,
  createWriteStream,
  fstatSync,
  ftruncateSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  type Stats,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { chmod, lstat, mkdir, open, readdir, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'
import { type PublishedFile, RESERVED_NAMES, type SkippedFile } from '../job/result.ts'
import { type AlgorithmUser, handOver, takeCopy } from './user.ts'

/** Folder in RESULT_BASEDIR that holds those of the workers. */
export const WORK_FOLDER = '.work'

/** Where a worker has what belongs to an algorithm's warm processes (warm-seat.ts). @param workshop the worker's folder */
export function warmFolder(workshop: string, type: string): string {
  return join(workshop, '.warm', asWord(type))
}

/** What the marks of an algorithm's warm processes begin with. */
export function warmMark(workerId: string, type: string): string {
  return `${workerId}.warm.${asWord(type)}.`
}

/** No type holds a plus. */
function asWord(type: string): string {
  return type.replaceAll('.', '+')
}

export interface Workdir {
  readonly path: string
  readonly scratch: string
  readonly input: string
  readonly stdout: string
  readonly stderr: string
  /** who owns the scratch directory; undefined: we */
  readonly user?: AlgorithmUser | undefined
  /** what is published beside the outputs, by its name; undefined: both streams */
  readonly logs?: readonly (readonly [name: string, path: string])[]
}

/** A file that the algorithm left and that is to be published. */
export interface Output extends PublishedFile {
  readonly path: string
}

export const SETTINGS_FILE = '.settings.json'
const OURS: ReadonlySet<string> = new Set(['input.json', SETTINGS_FILE])
/** Of what is larger, files are written and read, and directories listed, while the loop goes on. */
const SMALL_FOLDER_BYTES = 16 * 2 ** 10
const MOST_SPARES = 64
const STREAMS = ['stdout.log', 'stderr.log']
export const SMALL_BYTES = 64 * 2 ** 10
/** What is kept of stderr as evidence. */
export const STDERR_TAIL_BYTES = 2048

/** Each costs an open, a hash, a sync and a rename: these take some ten seconds. */
const MAX_OUTPUT_FILES = 10_000

/**
 * Makes the directory of one run.
 * @param runId unique; a plain file name
 * @param settings rc values that the manifest asked for; written to a file that only this user may read
 * @param user whom the run belongs to, if not to us
 * @param spares emptied directories that may be used in place of a new one
 * @throws what the file system throws (ENOSPC, EACCES, ...): a fault of the machine, not of the job
 */
export async function createWorkdir(
  workBase: string,
  runId: string,
  payloadJson: string,
  settings?: Readonly<Record<string, unknown>>,
  user?: AlgorithmUser,
  spares?: Spares,
): Promise<Workdir> {
  const path = join(workBase, runId)
  const scratch = join(path, 'scratch')
  const workdir = {
    path,
    scratch,
    input: join(scratch, 'input.json'),
    stdout: join(path, 'stdout.log'),
    stderr: join(path, 'stderr.log'),
    user,
  }
  try {
    if (user !== undefined || !spares?.take(path)) {
      if (!makeFolder(path)) await makeRunFolder(path)
      mkdirSync(scratch, { recursive: true, mode: 0o700 })
    }
    if (payloadJson.length > SMALL_BYTES) await writeFile(workdir.input, payloadJson)
    else writeFileSync(workdir.input, payloadJson)
    if (settings !== undefined) await writeFile(join(scratch, SETTINGS_FILE), JSON.stringify(settings), { mode: 0o600 })
    if (user !== undefined) await handOver(workdir, user, foldersAbove(path))
    return workdir
  } catch (error) {
    // A full disk must not keep the half of a directory.
    await removeWorkdir(workdir)
    throw error
  }
}

/** False where the folder above it is not there. */
function makeFolder(path: string): boolean {
  try {
    mkdirSync(path, { mode: 0o700 })
    return true
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST') return true
    if (code === 'ENOENT') return false
    throw error
  }
}

/** Those of ours: the worker's, and the one of all workers. */
function foldersAbove(path: string): string[] {
  const [base, folder] = [dirname(dirname(path)), dirname(path)]
  return basename(base) === WORK_FOLDER ? [base, folder] : [folder]
}

/**
 * Up to `.work` and no further: where the result directory is gone (a disk that is not mounted), it must not be made
 * anew. The worker's folder may be, when somebody removed it.
 */
async function makeRunFolder(path: string): Promise<void> {
  for (const folder of [...foldersAbove(path), path]) {
    await mkdir(folder, { mode: 0o700 }).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error
    })
  }
}

/** Removes a run's directory. What is not ours may change under our hands: links in place of folders must not lead us astray. */
export async function removeWorkdir(workdir: Workdir, spares?: Spares): Promise<void> {
  if (workdir.user !== undefined) await removeByDescriptors(workdir.path).catch(() => undefined)
  else if (!spares?.keep(workdir)) await removeTree(workdir.path)
}

/**
 * Emptied directories of ended runs, which get the names of later ones. Making two directories and removing them again is
 * dearer than all else that is done with the files of a short run: on ext4 with other writers, a removal alone took 2 ms.
 */
export class Spares {
  readonly #folder: string
  readonly #names: string[] = []
  #made = 0

  /** @param folder the worker's, in which its runs are too */
  constructor(folder: string) {
    this.#folder = folder
  }

  /** Gives one this path. False: there is none. */
  take(path: string): boolean {
    const name = this.#names.pop()
    if (name === undefined) return false
    try {
      renameSync(name, path)
      return true
    } catch {
      return false
    }
  }

  /** Empties the directory of a run that is over. False where it holds anything but what we made, or is not as we made it. */
  keep(workdir: Workdir): boolean {
    const { path, scratch } = workdir
    if (this.#names.length >= MOST_SPARES) return false
    try {
      const names = bare.get(workdir) ?? listFew(scratch)
      if (names === undefined || names.some((name) => !OURS.has(name))) return false
      const around = readdirSync(path).filter((name) => name !== basename(scratch))
      if (around.some((name) => !STREAMS.includes(name)) || !isAsMade(path) || !isAsMade(scratch)) return false
      for (const name of names) unlinkSync(join(scratch, name))
      for (const name of around) unlinkSync(join(path, name))
      const name = join(this.#folder, `spare.${++this.#made}`)
      renameSync(path, name)
      this.#names.push(name)
      return true
    } catch {
      return false
    }
  }
}

/** A directory with our rights: an algorithm may have changed them, or put something else in its place. */
export function isAsMade(path: string, uid = process.geteuid?.()): boolean {
  const stats = lstatSync(path)
  return stats.isDirectory() && (stats.mode & 0o7777) === 0o700 && stats.uid === (uid ?? stats.uid)
}

/** Names in a directory; undefined when there may be more than some hundreds. */
function listFew(path: string): string[] | undefined {
  return lstatSync(path).size > SMALL_FOLDER_BYTES ? undefined : readdirSync(path)
}

/** What was in them when their runs were over: from then on nobody changes it but we. */
const bare = new WeakMap<Workdir, string[]>()

/** Whether its removal takes no longer than a few calls. */
export function isKnownBare(workdir: Workdir): boolean {
  return bare.has(workdir)
}

/**
 * Whether an algorithm left nothing in its directory, so that there is nothing to weigh or to publish. Told without
 * waiting, for a directory with a few entries.
 */
export function isBare(workdir: Workdir): boolean {
  const { scratch, input } = workdir
  try {
    const names = listFew(scratch)
    if (names === undefined || names.some((name) => !OURS.has(name))) return false
    bare.set(workdir, names)
    // What it was given it may have made longer.
    return (lstatSync(input, { throwIfNoEntry: false })?.size ?? 0) <= SMALL_BYTES
  } catch {
    return false
  }
}

async function removeByDescriptors(path: string): Promise<void> {
  await promisify(execFile)('rm', ['-rf', '--', path])
}

/** Removes a directory and all in it. Never throws: what cannot be removed stays. */
export async function removeTree(path: string): Promise<void> {
  const remove = () => rm(path, { recursive: true, force: true, maxRetries: 2 })
  // Folders without the right to write, as some package caches are, keep what is in them.
  await remove().catch(() =>
    unlockFolders(path)
      .then(remove)
      // A tree whose paths are longer than PATH_MAX: rm(1) goes down by descriptors.
      .catch(() => removeByDescriptors(path))
      .catch(() => undefined),
  )
}

async function unlockFolders(path: string): Promise<void> {
  await chmod(path, 0o700)
  for (const entry of await readdir(path, { withFileTypes: true })) {
    if (entry.isDirectory()) await unlockFolders(join(path, entry.name))
  }
}

/** A run that never began has streams too: who publishes them need not ask. */
export function leaveEmptyStreams(workdir: Workdir): void {
  for (const path of [workdir.stdout, workdir.stderr]) {
    if (workdir.user !== undefined) rmSync(path, { force: true })
    closeSync(openSync(path, 'a', 0o644))
  }
}

/**
 * Makes `stdout.log` and `stderr.log` what the processes wrote to, and no longer than allowed. An algorithm may have
 * removed them, or put a fifo or a link in their place, on which whoever reads them next would hang or be led astray.
 * @param streams descriptors of both, open for reading and writing; nothing writes to them any more
 */
export async function reclaimStreams(
  workdir: Workdir,
  streams: readonly [number, number],
  maxBytes: number,
): Promise<void> {
  for (const [path, fd] of [
    [workdir.stdout, streams[0]],
    [workdir.stderr, streams[1]],
  ] as const) {
    const ours = fstatSync(fd)
    if (ours.size > maxBytes) ftruncateSync(fd, maxBytes)
    const there = statOf(path)
    // A user who has them open somewhere else could write to them after the publication: copies are published.
    if (there?.ino === ours.ino && there.dev === ours.dev && workdir.user === undefined) continue
    await makeRunFolder(workdir.path)
    await rm(path, { recursive: true, force: true })
    await pipeline(
      createReadStream('', { fd, autoClose: false, start: 0, end: Math.max(0, maxBytes - 1) }),
      createWriteStream(path, { flags: 'wx', mode: 0o644 }),
    )
  }
}

function statOf(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false })
  } catch {
    return undefined
  }
}

/**
 * Lists the files to publish: regular files at the top of the scratch directory that match `patterns`.
 * @param patterns `*` and `?` as in a shell; undefined: all that do not begin with a dot
 */
export async function collectOutputs(
  workdir: Workdir,
  patterns: readonly string[] | undefined,
  { maxBytes, signal }: { maxBytes: number; signal: AbortSignal },
): Promise<{ outputs: Output[]; skipped: SkippedFile[] } | { excess: string }> {
  const outputs: Output[] = []
  const skipped: SkippedFile[] = []
  const skip = (name: string, reason: string) => skipped.push({ name: showName(name), reason })
  const names = await readdir(workdir.scratch).catch((error: unknown) => {
    // An algorithm may do with its directory what it likes. ENOENT: it was removed, so nothing was left in it.
    const reason = whyUnreadable(error)
    if (!isGone(error)) skip('scratch', reason)
    return []
  })
  let bytes = 0
  let seen = 0
  for (const name of names.sort()) {
    if (signal.aborted) break
    if (name === 'input.json' || name === SETTINGS_FILE) continue
    if (!isWanted(name, patterns)) continue
    if (++seen > MAX_OUTPUT_FILES)
      return { excess: `it left more than ${MAX_OUTPUT_FILES} files to publish: pack them into one` }
    const path = join(workdir.scratch, name)
    const reason = await unpublishable(name, path)
    if (reason !== undefined) {
      skip(name, reason)
      continue
    }
    // Not blocks but length: who publishes a sparse file reads and sends all of it.
    bytes += await lstat(path).then(
      (stats) => stats.size,
      () => 0,
    )
    if (bytes > maxBytes) return { excess: `its outputs are longer than ${maxBytes} bytes (MAX_SCRATCH)` }
    const content = await takeOutput(workdir, path, seen, signal).catch((error: unknown) =>
      signal.aborted ? 'interrupted' : whyUnreadable(error),
    )
    if (typeof content === 'string') skip(name, content)
    else outputs.push({ name, ...content })
  }
  return { outputs, skipped }
}

function isWanted(name: string, patterns: readonly string[] | undefined): boolean {
  if (patterns === undefined) return !name.startsWith('.')
  return patterns.some((pattern) => (!name.startsWith('.') || pattern.startsWith('.')) && matchesPattern(name, pattern))
}

function showName(name: string): string {
  return name.replace(/[^\x20-\x7e]/g, '?').slice(0, 100)
}

/** The algorithm's doing is a reason, anything else a fault of this machine, which is thrown. */
function whyUnreadable(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException
  if (['EACCES', 'EPERM', 'ELOOP', 'ENXIO'].includes(code ?? '') || isGone(error)) return `cannot be read (${code})`
  throw error
}

function isGone(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException
  return code === 'ENOENT' || code === 'ENOTDIR'
}

async function unpublishable(name: string, path: string): Promise<string | undefined> {
  if (RESERVED_NAMES.includes(name)) return 'the name is reserved'
  if (name.startsWith('.')) return 'the name begins with a dot'
  if (/[\u0000-\u001f\u007f\\\ufffd]/.test(name))
    return 'the name holds a control character, a backslash, or is not UTF-8'
  const stats = await lstat(path).catch(whyUnreadable)
  if (typeof stats === 'string') return stats
  if (stats.isDirectory()) return 'a folder: only files at the top of the scratch directory are published'
  if (!stats.isFile()) return 'not a regular file'
  return undefined
}

/** @returns the reason when it is not to be published */
async function takeOutput(
  { path, user }: Workdir,
  source: string,
  number: number,
  signal: AbortSignal,
): Promise<Omit<Output, 'name'> | string> {
  if (user === undefined) return { path: source, ...(await digest(source, signal)) }
  const copy = join(path, 'outputs', String(number))
  const reason = await takeCopy(source, copy, user, signal)
  return reason ?? { path: copy, ...(await digest(copy, signal)) }
}

async function digest(path: string, signal: AbortSignal): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256')
  let bytes = 0
  const stream = createReadStream(path, { flags: (constants.O_NOFOLLOW | constants.O_NONBLOCK) as unknown as string })
  await pipeline(
    stream,
    async (chunks) => {
      for await (const chunk of chunks as AsyncIterable<Buffer>) {
        bytes += chunk.length
        hash.update(chunk)
      }
    },
    { signal },
  )
  return { bytes, sha256: hash.digest('hex') }
}

/** `*` is any text, `?` one character. Goes back to the last `*` only, so no pattern takes long. */
function matchesPattern(name: string, pattern: string): boolean {
  const text = [...name]
  const wanted = [...pattern]
  let star = -1
  let resume = 0
  let j = 0
  for (let i = 0; i < text.length; ) {
    if (wanted[j] === '*') {
      star = j++
      resume = i
    } else if (j < wanted.length && (wanted[j] === '?' || wanted[j] === text[i])) {
      i++
      j++
    } else if (star >= 0) {
      j = star + 1
      i = ++resume
    } else return false
  }
  return wanted.slice(j).every((part) => part === '*')
}

/** Bytes of all files below a directory; stops counting when `limit` is passed. */
export async function directoryBytes(path: string, limit: number): Promise<number> {
  let total = 0
  const waiting = [path]
  for (let dir = waiting.pop(); dir !== undefined; dir = waiting.pop()) {
    const entries = await readdir(dir, { withFileTypes: true }).catch(() => [])
    for (const entry of entries) {
      const child = join(dir, entry.name)
      if (entry.isDirectory()) waiting.push(child)
      else if (entry.isFile()) total += await usedBytes(child)
      if (total > limit) return total
    }
  }
  return total
}

/** Blocks that a file takes on the disk: a sparse file counts for what it uses. */
async function usedBytes(path: string): Promise<number> {
  return lstat(path).then(
    (stats) => stats.blocks * 512,
    () => 0,
  )
}

/** The last bytes of a file as text; a character that the cut would halve is left out. */
export async function readTail(path: string, bytes: number): Promise<string> {
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
  try {
    return readTailOf(file.fd, bytes)
  } finally {
    await file.close()
  }
}

/** The same for a descriptor. A few KB just written are in memory. */
export function readTailOf(fd: number, bytes: number): string {
  const { size } = fstatSync(fd)
  if (size === 0) return ''
  const buffer = Buffer.alloc(Math.min(bytes, size))
  const bytesRead = readSync(fd, buffer, 0, buffer.length, Math.max(0, size - bytes))
  return decodeTail(buffer.subarray(0, bytesRead), size > bytes)
}

/** @param isCut something stood before it */
export function decodeTail(tail: Buffer, isCut: boolean): string {
  let start = 0
  if (isCut) while (start < 3 && start < tail.length && ((tail[start] as number) & 0xc0) === 0x80) start++
  return tail.toString('utf8', start)
}
