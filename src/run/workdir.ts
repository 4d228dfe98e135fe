/**
 * One directory per run, below `RESULT_BASEDIR/.work`:
 *
 *     <run>/stdout.log  stderr.log     the streams, written by the processes themselves: no pipe of ours to fill or close
 *     <run>/scratch/                   the algorithm's working directory, with input.json
 */

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { lstat, mkdir, open, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { type PublishedFile, RESERVED_NAMES, type SkippedFile } from '../job/result.ts'

export interface Workdir {
  readonly path: string
  readonly scratch: string
  readonly input: string
  readonly stdout: string
  readonly stderr: string
}

/** A file that the algorithm left and that is to be published. */
export interface Output extends PublishedFile {
  readonly path: string
}

export const SETTINGS_FILE = '.settings.json'

/**
 * Makes the directory of one run.
 * @param runId unique; a plain file name
 * @param settings rc values that the manifest asked for; written to a file that only this user may read
 * @throws what the file system throws (ENOSPC, EACCES, ...): a fault of the machine, not of the job
 */
export async function createWorkdir(
  workBase: string,
  runId: string,
  payloadJson: string,
  settings?: Readonly<Record<string, unknown>>,
): Promise<Workdir> {
  const path = join(workBase, runId)
  const scratch = join(path, 'scratch')
  await mkdir(scratch, { recursive: true, mode: 0o700 })
  const input = join(scratch, 'input.json')
  await writeFile(input, payloadJson)
  const streams = ['stdout.log', 'stderr.log'].map((name) => join(path, name)) as [string, string]
  // There from the start: a run whose program cannot be started has its (empty) logs too.
  for (const stream of streams) await writeFile(stream, '')
  if (settings !== undefined) await writeFile(join(scratch, SETTINGS_FILE), JSON.stringify(settings), { mode: 0o600 })
  return { path, scratch, input, stdout: streams[0], stderr: streams[1] }
}

/** Removes a run's directory and all in it. Never throws: what cannot be removed is found at the next start. */
export async function removeWorkdir(workdir: Workdir): Promise<void> {
  await rm(workdir.path, { recursive: true, force: true, maxRetries: 2 }).catch(() => undefined)
}

/**
 * Lists the files to publish: regular files at the top of the scratch directory that match `patterns`.
 * @param patterns `*` and `?` as in a shell; undefined: all that do not begin with a dot
 */
export async function collectOutputs(
  workdir: Workdir,
  patterns: readonly string[] | undefined,
): Promise<{ outputs: Output[]; skipped: SkippedFile[] }> {
  const outputs: Output[] = []
  const skipped: SkippedFile[] = []
  const wanted = patterns?.map(patternToRegExp)
  const names = (await readdir(workdir.scratch)).sort()
  for (const name of names) {
    if (name === 'input.json' || name === SETTINGS_FILE) continue
    if (wanted === undefined ? name.startsWith('.') : !wanted.some((pattern) => pattern.test(name))) continue
    const path = join(workdir.scratch, name)
    const reason = await unpublishable(name, path)
    if (reason === undefined) outputs.push({ name, path, ...(await digest(path)) })
    else skipped.push({ name: name.replace(/[^\x20-\x7e]/g, '?').slice(0, 100), reason })
  }
  return { outputs, skipped }
}

async function unpublishable(name: string, path: string): Promise<string | undefined> {
  if (RESERVED_NAMES.includes(name)) return 'the name is reserved'
  if (name.startsWith('.')) return 'the name begins with a dot'
  if (/[\u0000-\u001f\u007f\\\ufffd]/.test(name))
    return 'the name holds a control character, a backslash, or is not UTF-8'
  const stats = await lstat(path)
  if (stats.isDirectory()) return 'a folder: only files at the top of the scratch directory are published'
  if (!stats.isFile()) return 'not a regular file'
  return undefined
}

async function digest(path: string): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256')
  let bytes = 0
  await pipeline(createReadStream(path), async (chunks) => {
    for await (const chunk of chunks as AsyncIterable<Buffer>) {
      bytes += chunk.length
      hash.update(chunk)
    }
  })
  return { bytes, sha256: hash.digest('hex') }
}

function patternToRegExp(pattern: string): RegExp {
  const source = pattern
    .replace(/[.+^${}()|[\]\\]/g, '\\$&')
    .replaceAll('*', '.*')
    .replaceAll('?', '.')
  return new RegExp(`^${source}$`, 's')
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

/** The last bytes of a file as text. */
export async function readTail(path: string, bytes: number): Promise<string> {
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    const buffer = Buffer.alloc(Math.min(bytes, size))
    const { bytesRead } = await file.read(buffer, 0, buffer.length, Math.max(0, size - bytes))
    return buffer.toString('utf8', 0, bytesRead)
  } finally {
    await file.close()
  }
}
