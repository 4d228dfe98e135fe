/**
 * What is to be published, until it has its name: sources that lie on the store's disk where they are, all else under
 * temporary names. A publisher that dies in the middle leaves nothing in the job's directory where it has a folder of
 * its own for them.
 */

import { linkSync, openSync, renameSync, unlinkSync, write, writeSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { promisify } from 'node:util'
import { closeAll, syncFiles } from './durable.ts'
import { errnoOf, lookAt, lookAtSource, openSeenSource, openSource, temporaryName } from './publication.ts'
import type { Publication } from './store.ts'

/** Files whose bytes are made durable at the same time: disks commit neighbours together, and descriptors are few. */
const SYNCED_AT_ONCE = 8
/** Names that are given in one turn of the event loop. */
const NAMED_AT_ONCE = 64
/** As many bytes as these, and more, are written by the thread pool: the disk may have to make room for them. */
const WRITTEN_AT_ONCE = 64 * 1024

const writeSome = promisify(write)

/** Bytes that wait for their published name. */
export interface Staged {
  readonly name: string
  readonly path: string
}

/** The bytes of one publication. */
export interface Stage {
  /** of the job */
  readonly dir: string
  /** for temporary files; undefined: the job's directory */
  readonly folder: string | undefined
  /** of the job's directory */
  readonly device: number
  readonly files: Staged[]
  result: Staged | undefined
  /** those that have not got their name */
  readonly temporaries: Set<string>
  /** of files whose bytes are not durable yet */
  readonly unsynced: number[]
}

export function openStage(dir: string, device: number, folder: string | undefined): Stage {
  return { dir, folder, device, files: [], result: undefined, temporaries: new Set(), unsynced: [] }
}

/** Leaves nothing under a temporary name. */
export function closeStage(stage: Stage): void {
  closeAll(stage.unsynced)
  for (const path of stage.temporaries) removeFile(path)
}

/** Brings all that is to be published onto the store's disk; the last bytes of it are made durable by `syncStage`. */
export async function stageAll(stage: Stage, { files, status, result }: Publication): Promise<void> {
  for (const [name, source] of files) {
    stage.files.push({ name, path: await stageFile(stage, name, source) })
    if (stage.unsynced.length >= SYNCED_AT_ONCE) await syncFiles(stage.unsynced)
  }
  await stageStatus(stage, status)
  if (result !== undefined) stage.result = { name: 'result.json', path: await writeText(stage, result) }
}

export function syncStage(stage: Stage): Promise<void> {
  return syncFiles(stage.unsynced)
}

/** After the files: it is named after them. */
export async function stageStatus(stage: Stage, status: string): Promise<void> {
  stage.files.push({ name: 'status.json', path: await writeText(stage, status) })
}

async function stageFile(stage: Stage, name: string, source: string): Promise<string> {
  const stats = lookAtSource(name, source)
  if (stats?.isFile() !== true || stats.dev !== stage.device) return copyFile(stage, name, source)
  if (stats.size > 0) stage.unsynced.push(openSeenSource(name, source))
  return source
}

/** @throws StoreError when it is nothing that may be published */
async function copyFile(stage: Stage, name: string, source: string): Promise<string> {
  const handle = await openSource(name, source)
  try {
    return await writeTemporary(stage, handle.createReadStream({ autoClose: false }))
  } finally {
    await handle.close()
  }
}

function writeText(stage: Stage, text: string): Promise<string> {
  return writeTemporary(stage, [Buffer.from(text)])
}

async function writeTemporary(stage: Stage, chunks: Iterable<Buffer> | AsyncIterable<Buffer>): Promise<string> {
  const { path, descriptor } = openTemporary(stage)
  stage.temporaries.add(path)
  stage.unsynced.push(descriptor)
  for await (const chunk of chunks) {
    let done = 0
    while (done < chunk.length) {
      if (chunk.length < WRITTEN_AT_ONCE) done += writeSync(descriptor, chunk, done)
      else done += (await writeSome(descriptor, chunk, done)).bytesWritten
    }
  }
  return path
}

/** In the publisher's folder; in the job's own where there is none, it is gone, or on another disk. */
function openTemporary({ dir, folder }: Stage): { path: string; descriptor: number } {
  const name = temporaryName()
  if (folder !== undefined) {
    const path = join(folder, name)
    try {
      return { path, descriptor: openSync(path, 'wx') }
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error
    }
  }
  const path = join(dir, name)
  return { path, descriptor: openSync(path, 'wx') }
}

/** Gives all but the result their names, in their order. */
export async function nameFiles(stage: Stage): Promise<void> {
  for (const [i, file] of stage.files.entries()) {
    if (i % NAMED_AT_ONCE === NAMED_AT_ONCE - 1) await nextTurn()
    const target = join(stage.dir, file.name)
    if (!rename(file.path, target)) await replace(stage, file, target)
    stage.temporaries.delete(file.path)
  }
}

/** False when it takes more than that. */
function rename(path: string, target: string): boolean {
  try {
    renameSync(path, target)
    return true
  } catch (error) {
    if (errnoOf(error) === 'EISDIR' || errnoOf(error) === 'EXDEV') return false
    throw error
  }
}

/** A folder of that name is nothing of ours. Two mounts of one disk have one device number and still refuse the rename. */
async function replace(stage: Stage, { name, path }: Staged, target: string): Promise<void> {
  if (lookAt(target)?.isDirectory()) await rm(target, { recursive: true, force: true })
  if (rename(path, target)) return
  const copy = await copyFile({ ...stage, folder: undefined }, name, path)
  await syncFiles(stage.unsynced)
  renameSync(copy, target)
  stage.temporaries.delete(copy)
}

/** The commit. False when there is a result already: link(2) cannot replace. */
export function nameResult(stage: Stage, { name, path }: Staged): boolean {
  try {
    linkSync(path, join(stage.dir, name))
    return true
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false
    throw error
  }
}

/** Whether or not it is there. */
export function removeFile(path: string): void {
  try {
    unlinkSync(path)
  } catch {
    // It is swept later, or its folder was removed.
  }
}
