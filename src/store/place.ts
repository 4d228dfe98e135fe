/** The base directory: whether it can be used, and what to do about it when it cannot. */

import { constants } from 'node:fs'
import { access, link, open, readdir, rm, stat, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf, isTemporaryName, lookAt, temporaryName } from './publication.ts'
import { StoreError } from './store.ts'

/** A disk on which not even this has room is full. */
const PROBE_BYTES = 64 * 1024

/** One line a problem, with its remedy. */
export async function checkBase(base: string): Promise<string[]> {
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
  const third = join(base, temporaryName())
  try {
    const handle = await open(probe, 'wx')
    await handle.writeFile(Buffer.alloc(PROBE_BYTES)).finally(() => handle.close())
    if (!(await isKnown(link(probe, second))))
      return [`the file system of ${base} knows no hard links, which results are committed by; use another`]
    if (!(await isKnown(symlink('probe', third))))
      return [`the file system of ${base} knows no symbolic links, which jobs are locked by; use another`]
    return await checkWorkDir(join(base, '.work'))
  } catch (error) {
    return [storeError(base, error).message]
  } finally {
    for (const path of [probe, second, third]) await rm(path, { force: true }).catch(() => {})
  }
}

/** False when the file system has no such thing. */
function isKnown(trial: Promise<void>): Promise<boolean> {
  return trial.then(
    () => true,
    (error) => !['EPERM', 'ENOTSUP', 'EMLINK', 'ENOSYS'].includes(errnoOf(error)),
  )
}

/**
 * Probes of workers that were killed in the middle of one. That of a living one may be among them: who has made its
 * probe has learnt what it wanted to know, whoever removes it.
 */
async function removeProbes(base: string): Promise<void> {
  const names = await readdir(base).catch((): string[] => [])
  for (const name of names.filter(isTemporaryName)) await rm(join(base, name), { force: true }).catch(() => {})
}

/**
 * Scratch directories of runs lie on the same disk, so that outputs are published by a rename. It is not made here: who
 * only checks may be another user than the worker.
 */
async function checkWorkDir(path: string): Promise<string[]> {
  if (lookAt(path) === undefined) return []
  const advice = `${path} is not a directory; it is for scratch directories of runs: remove it, the worker creates it`
  if (!(await stat(path)).isDirectory()) return [advice]
  await access(path, constants.R_OK | constants.W_OK | constants.X_OK)
  return []
}

function shellWord(text: string): string {
  return /^[A-Za-z0-9_./:@%+,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
}

/** Failures of the disk become those of the store. */
export async function guard<T>(base: string, work: () => Promise<T>): Promise<T> {
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
