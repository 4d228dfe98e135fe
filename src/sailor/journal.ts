/**
 * The log book of the sailors of one torture: each notes itself before it does anything, then looks for another sailor
 * with its job who is still alive. Of two that start at once at least one sees the other: both write before they look.
 *
 *     DIR/<2 digits>/<uuid>.<attempt>.<pid>.<start ticks>      one for each run, empty; with `.done` when a warm sailor
 *                                                              has left the job, and lives on
 *     DIR/overlaps/<uuid>.<pid>.<pid>                          two runs of one job at the same time; what they were
 *
 * All that counts stands in the names, which are there as a whole or not at all.
 */

import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { isAlive, readProcess } from './process.ts'

const OVERLAPS = 'overlaps'

export interface Overlap {
  readonly uuid: string
  readonly detail: string
}

/** @throws what the file system throws */
export function enterJournal(dir: string, uuid: string, attempt: string): void {
  const own = readProcess(process.pid)
  if (own === undefined) return
  const shard = join(dir, uuid.slice(0, 2))
  mkdirSync(shard, { recursive: true })
  const name = `${uuid}.${attempt}.${own.pid}.${own.startTicks}`
  writeFileSync(join(shard, name), '')
  for (const other of readdirSync(shard)) {
    if (other === name || !other.startsWith(`${uuid}.`)) continue
    const [, otherAttempt, pid, ticks, done] = other.split('.')
    if (done !== undefined || !isAlive(Number(pid), Number(ticks))) continue
    const detail = `attempt ${otherAttempt} (process ${pid}) was alive when attempt ${attempt} (process ${own.pid}) began`
    mkdirSync(join(dir, OVERLAPS), { recursive: true })
    writeFileSync(join(dir, OVERLAPS, `${uuid}.${pid}.${own.pid}`), detail)
  }
}

/** Of a sailor who is about to answer, and lives on. @throws what the file system throws */
export function leaveJournal(dir: string, uuid: string, attempt: string): void {
  const own = readProcess(process.pid)
  if (own === undefined) return
  const path = join(dir, uuid.slice(0, 2), `${uuid}.${attempt}.${own.pid}.${own.startTicks}`)
  renameSync(path, `${path}.done`)
}

export function readOverlaps(dir: string): Overlap[] {
  return list(join(dir, OVERLAPS)).map((name) => ({
    uuid: name.split('.', 1)[0] ?? '',
    detail: readFileSync(join(dir, OVERLAPS, name), 'utf8'),
  }))
}

/** How many runs have noted themselves. */
export function countRuns(dir: string): number {
  return list(dir).reduce((sum, shard) => sum + (shard === OVERLAPS ? 0 : list(join(dir, shard)).length), 0)
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}
