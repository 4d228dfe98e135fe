/**
 * The lock of a job's directory: held by one publisher at a time, from before it looks until its last step. It is a
 * symbolic link whose target is the owner's text: made by one call, so that none is seen without its owner, and of no
 * cost where the text is short (below 60 bytes ext4 keeps it in the inode).
 *
 * That of a dead process is broken at once, that of a living one never, however long it is stopped. Only where it cannot
 * be told whether the process lives (another machine) does the age decide: its holder renews it.
 */

import { readlinkSync, renameSync, symlinkSync, unlinkSync } from 'node:fs'
import { lutimes, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { errnoOf, lookAt, temporaryName } from './publication.ts'
import { type Publisher, StoreError } from './store.ts'

export const LOCK = '.publishing'

const STALE_MS = 60_000
const WAIT_MS = 30_000
const POLL_MS = 50

interface Locker {
  readonly publisher: Publisher
  /** texts of the locks that are held here */
  readonly locks: Set<string>
}

/**
 * Takes the lock; gives a function that gives it back.
 * @throws StoreError when another has it for too long
 */
export async function takeLock(path: string, locker: Locker): Promise<() => void> {
  const { publisher, locks } = locker
  const text = `${publisher.identity}\n${temporaryName()}`
  const deadline = performance.now() + WAIT_MS
  while (!isMade(text, path)) {
    await breakDeadLock(locker, path)
    if (performance.now() > deadline) {
      const message = `${dirname(path)}: another worker is publishing this job and does not come to an end (${LOCK})`
      throw new StoreError('unavailable', message)
    }
    await sleep(POLL_MS)
  }
  locks.add(text)
  const renew = () => lutimes(path, new Date(), new Date()).catch(() => undefined)
  const timer = setInterval(renew, STALE_MS / 6)
  return () => {
    clearInterval(timer)
    locks.delete(text)
    if (readLock(path) === text) isDone(() => unlinkSync(path))
  }
}

/** False when something of that name is there. */
function isMade(text: string, path: string): boolean {
  try {
    symlinkSync(text, path)
    return true
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error
    return false
  }
}

/** What a lock says; undefined when there is none, or something else of its name. */
function readLock(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch {
    return undefined
  }
}

/**
 * Removes a lock whose publisher is dead, and what an algorithm put there in its name. Moved aside first: of two that
 * break it at once, the slower one must not remove the lock that the other made since.
 */
export async function breakDeadLock(locker: Locker, path: string): Promise<void> {
  if (lookAt(path) === undefined) return
  const text = readLock(path)
  if (text !== undefined && !isDead(locker, path, text)) return
  const aside = join(dirname(path), temporaryName())
  if (!isDone(() => renameSync(path, aside))) return
  const moved = readLock(aside)
  if (moved !== undefined && moved !== text) isDone(() => symlinkSync(moved, path))
  await rm(aside, { recursive: true, force: true })
}

function isDead({ publisher, locks }: Locker, path: string, text: string): boolean {
  const [identity = ''] = text.split('\n')
  const isForged = identity !== '' && identity === publisher.identity && !locks.has(text)
  const state = isForged ? 'dead' : identity === '' ? 'unknown' : publisher.stateOf(identity)
  // Looked at after its text was read: another one that has its name since is younger.
  const age = Date.now() - (lookAt(path)?.mtimeMs ?? Date.now())
  return state === 'dead' || (state === 'unknown' && age >= STALE_MS)
}

function isDone(step: () => void): boolean {
  try {
    step()
    return true
  } catch {
    return false
  }
}
