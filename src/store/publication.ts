/** What a store takes: the names, and the files that bytes are read from. The same for every driver. */

import { randomUUID } from 'node:crypto'
import { constants, lstat, lstatSync, openSync, type Stats } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { describe, isUuid, uuidProblem } from '../job/package.ts'
import { type Publication, StoreError } from './store.ts'

/** what file systems take */
const MAX_NAME_BYTES = 255

/**
 * Tells whether an output or log may have this name in a job's directory: one path segment that is neither hidden nor
 * a document of ours.
 */
function isOutputName(name: string): boolean {
  return isFileName(name) && name !== 'result.json' && name !== 'status.json'
}

/** Tells whether this may be the name of anything that is published. */
export function isFileName(name: string): boolean {
  return (
    name !== '' &&
    !name.startsWith('.') &&
    !/[/\u0000]/.test(name) &&
    name !== 'input.json' &&
    Buffer.byteLength(name) <= MAX_NAME_BYTES
  )
}

/** @throws StoreError when a store must not take this */
export function checkPublication(publication: Publication): void {
  checkUuid(publication.uuid)
  for (const name of publication.files.keys()) {
    if (isOutputName(name)) continue
    throw new StoreError('failed', `a file named ${describe(name)} cannot be published; its name is taken or hidden`)
  }
}

/** @throws StoreError when the uuid is malformed: it becomes a path */
export function checkUuid(uuid: string): void {
  if (!isUuid(uuid)) throw new StoreError('failed', uuidProblem(uuid))
}

/** Without NONBLOCK the open of a named pipe waits for a writer, and takes a thread with it. */
export const READ_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

/** Never through a link: an algorithm that leaves one would publish a file of the worker's. */
export async function openSource(name: string, source: string): Promise<FileHandle> {
  const handle = await open(source, READ_FLAGS).catch((error: unknown) => {
    throw sourceError(name, source, error)
  })
  if ((await handle.stat()).isFile()) return handle
  await handle.close()
  throw new StoreError('failed', `${name} cannot be published: ${source} is not a regular file`)
}

export function lookAtSource(name: string, source: string): Stats | undefined {
  return asSource(name, source, () => lookAt(source))
}

/** The descriptor of what was seen to be a regular file. */
export function openSeenSource(name: string, source: string): number {
  return asSource(name, source, () => openSync(source, READ_FLAGS))
}

function asSource<T>(name: string, source: string, step: () => T): T {
  try {
    return step()
  } catch (error) {
    throw sourceError(name, source, error)
  }
}

function sourceError(name: string, source: string, error: unknown): unknown {
  const code = errnoOf(error)
  if (!['ENOENT', 'ELOOP', 'ENXIO', 'EACCES'].includes(code)) return error
  const problem = `${source} is gone, a link, or not readable (${code})`
  return new StoreError('failed', `${name} cannot be published: ${problem}`, error)
}

/** The system's code of an error, such as ENOSPC; empty when it has none. */
export function errnoOf(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : ''
}

/** What a name stands for, links not followed; undefined when nothing of that name is there. */
export function lookAt(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false })
  } catch (error) {
    if (isAbsence(error)) return undefined
    throw error
  }
}

/** The same by the thread pool. */
export function statOf(path: string): Promise<Stats | undefined> {
  // Not that of node:fs/promises, which takes half as long again: every answer of the HTTP server asks.
  return new Promise((resolve, reject) => {
    lstat(path, (error, stats) => {
      if (error === null) resolve(stats)
      else if (isAbsence(error)) resolve(undefined)
      else reject(error)
    })
  })
}

/** Codes that mean: nothing of that name is there that we would serve. */
export function isAbsence(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG', 'EISDIR'].includes(errnoOf(error))
}

const TEMPORARY = /^\.[0-9a-f]{16}\.tmp$/

/** Of what is not published yet; never served. */
export function temporaryName(): string {
  return `.${randomUUID().replaceAll('-', '').slice(16)}.tmp`
}

export function isTemporaryName(name: string): boolean {
  return TEMPORARY.test(name)
}
