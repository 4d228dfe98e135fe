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
import { closeAll, sync } from './durable.ts'
import { errnoOf, lookAt, lookAtSource, openSeenSource, openSource, temporaryName } from './publication.ts'
import type { Publication } from './store.ts'

/** Files whose bytes are made durable at the same time: disks commit neighbours together, and descriptors are few. */
export const SYNCED_AT_ONCE = 8
/** Names that are given in one turn of the event loop. */
export const NAMED_AT_ONCE = 64
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

/** Brings all that is to be published onto the store's disk; the last bytes of it are not durable yet. */
export async function stageAll(stage: Stage, { files, status, result }: Publication): Promise<void> {
  for (const [name, source] of files) {
    stage.files.push({ name, path: await stageFile(stage, name, source) })
    if (stage.unsynced.length >= SYNCED_AT_ONCE) await sync(stage.unsynced)
  }
  await stageStatus(stage, status)
  if (result !== undefined) stage.result = { name: 'result.json', path: await writeText(stage, result) }
}

/** After the files: it is named after them. */
export async function stageStatus(stage: Stage, status: string): Promise<void> {
  stage.files.push({ name: 'status.json', path: await writeText(stage, status) })
}

async function stageFile(stage: Stage, name: string, source: string): Promise<string> {
  if (canMove(stage, name, source)) return source
  const { path, descriptor } = openTemporary(stage)
  await copyFile(descriptor, name, source)
  return path
}

/** Whether it can become the published file; then its bytes are among those that are to be synced. */
export function canMove(
  { device, unsynced }: Pick<Stage, 'device' | 'unsynced'>,
  name: string,
  source: string,
): boolean {
  const stats = lookAtSource(name, source)
  if (stats?.isFile() !== true || stats.dev !== device) return false
  if (stats.size > 0) unsynced.push(openSeenSource(name, source))
  return true
}

/** @throws StoreError when it is nothing that may be published */
export async function copyFile(descriptor: number, name: string, source: string): Promise<void> {
  const handle = await openSource(name, source)
  try {
    for await (const chunk of handle.createReadStream({ autoClose: false })) await writeChunk(descriptor, chunk)
  } finally {
    await handle.close()
  }
}

async function writeText(stage: Stage, text: string): Promise<string> {
  const { path, descriptor } = openTemporary(stage)
  await writeChunk(descriptor, Buffer.from(text))
  return path
}

export async function writeChunk(descriptor: number, chunk: Buffer): Promise<void> {
  let done = 0
  while (done < chunk.length) {
    if (chunk.length < WRITTEN_AT_ONCE) done += writeSync(descriptor, chunk, done)
    else done += (await writeSome(descriptor, chunk, done)).bytesWritten
  }
}

/** In the publisher's folder; in the job's own where there is none, it is gone, or on another disk. */
function openTemporary(stage: Stage): { path: string; descriptor: number } {
  const { dir, folder } = stage
  const name = temporaryName()
  if (folder !== undefined) {
    try {
      return openNew(stage, join(folder, name))
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error
    }
  }
  return openNew(stage, join(dir, name))
}

function openNew({ temporaries, unsynced }: Stage, path: string): { path: string; descriptor: number } {
  const descriptor = openSync(path, 'wx')
  temporaries.add(path)
  unsynced.push(descriptor)
  return { path, descriptor }
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

/** False when it takes more than that: a folder has the name, or two mounts of one disk, which refuse it. */
export function rename(path: string, target: string): boolean {
  try {
    renameSync(path, target)
    return true
  } catch (error) {
    if (errnoOf(error) === 'EISDIR' || errnoOf(error) === 'EXDEV') return false
    throw error
  }
}

/** A folder of that name is nothing of ours. Two mounts of one disk have one device number. */
async function replace(stage: Stage, { name, path }: Staged, target: string): Promise<void> {
  if (lookAt(target)?.isDirectory()) await rm(target, { recursive: true, force: true })
  if (rename(path, target)) return
  const copy = openTemporary({ ...stage, folder: undefined })
  await copyFile(copy.descriptor, name, path)
  await sync(stage.unsynced)
  renameSync(copy.path, target)
  stage.temporaries.delete(copy.path)
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
