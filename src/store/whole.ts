/**
 * The first publication of a job: its directory is filled aside, made durable there, and gets its name, with all that is
 * in it, by one rename(2). That is the commit: nobody sees a part of it, and rename(2) does not replace a directory that
 * holds anything, so the first result of a job stays its result, without a lock.
 *
 * One that was published to before, or is being published to, is left to local.ts, which knows how to add to it.
 */

import { lstatSync, mkdirSync, openSync, renameSync, rmdirSync, type Stats } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { closeAll, sync } from './durable.ts'
import { errnoOf, temporaryName } from './publication.ts'
import { canMove, copyFile, NAMED_AT_ONCE, rename, SYNCED_AT_ONCE, writeChunk } from './staging.ts'
import type { Publication } from './store.ts'

/** Who makes something in a directory with this bit makes it for the directory's group, and a directory gets the bit too. */
const SETGID = 0o2000

/** A job's directory before it has its name. */
export interface Whole {
  readonly path: string
  readonly device: number
  readonly unsynced: number[]
}

/**
 * @param folder the publisher's own, on the store's disk
 * @param shard where the directory gets its name
 * @returns undefined when the folder is not there, or when what is made in it gets other rights, or another group, than
 *   what is made in the shard: those that were given to the results (chmod g+s, setfacl -d) need not have been given to it.
 *   A shard that was made with another umask looks the same, and costs a wait.
 */
export function openWhole(folder: string, shard: Stats): Whole | undefined {
  const path = join(folder, temporaryName())
  try {
    mkdirSync(path)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
  const { dev, gid, mode } = lstatSync(path)
  const isGroupInherited = (mode & SETGID) !== 0
  if (mode === shard.mode && (!isGroupInherited || gid === shard.gid)) return { path, device: dev, unsynced: [] }
  rmdirSync(path)
  return undefined
}

/** Everything under its last name, and durable. Sources on the same disk are moved. */
export async function fillWhole(whole: Whole, { files, status, result }: Publication): Promise<void> {
  let moved = 0
  for (const [name, source] of files) {
    if (++moved % NAMED_AT_ONCE === 0) await nextTurn()
    await bring(whole, name, source)
    if (whole.unsynced.length >= SYNCED_AT_ONCE) await sync(whole.unsynced)
  }
  await writeChunk(openNew(whole, 'status.json'), Buffer.from(status))
  if (result !== undefined) await writeChunk(openNew(whole, 'result.json'), Buffer.from(result))
  await sync(whole.unsynced, [whole.path])
}

async function bring(whole: Whole, name: string, source: string): Promise<void> {
  if (canMove(whole, name, source) && rename(source, join(whole.path, name))) return
  await copyFile(openNew(whole, name), name, source)
}

function openNew({ path, unsynced }: Whole, name: string): number {
  const descriptor = openSync(join(path, name), 'wx')
  unsynced.push(descriptor)
  return descriptor
}

/**
 * The commit; durable when the directory that holds the name is. False when something of that name is there, or the shard
 * is not: who removes old results may remove it with the last of them.
 */
export function nameWhole({ path }: Whole, target: string): boolean {
  try {
    renameSync(path, target)
    return true
  } catch (error) {
    if (['ENOTEMPTY', 'EEXIST', 'ENOTDIR', 'EXDEV', 'ENOENT'].includes(errnoOf(error))) return false
    throw error
  }
}

/** Removes one that has not got its name. What a failing disk keeps is swept with the publisher's folder. */
export async function closeWhole({ path, unsynced }: Whole): Promise<void> {
  closeAll(unsynced)
  await rm(path, { recursive: true, force: true }).catch(() => undefined)
}
