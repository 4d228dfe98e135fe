/**
 * The lock of a job's directory: held by one publisher at a time, from before it looks until its last step.
 *
 * That of a dead process is broken at once, that of a living one never, however long it is stopped. Only where it cannot
 * be told whether the process lives (another machine) does the age decide: its holder renews it.
 */

import { type FileHandle, link, readFile, rename, rm, utimes } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { errnoOf, statOf } from './publication.ts'
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
 * @param own an empty file on the same disk, which becomes the lock: by link(2), so that none is seen without its owner
 * @throws StoreError when another has it for too long
 */
export async function takeLock(
  path: string,
  own: { readonly path: string; readonly handle: FileHandle },
  locker: Locker,
): Promise<() => Promise<void>> {
  const { publisher, locks } = locker
  const text = `${publisher.identity}\n${own.path}\n`
  try {
    await own.handle.writeFile(text).finally(() => own.handle.close())
    const deadline = performance.now() + WAIT_MS
    while (!(await link(own.path, path).then(() => true, isNotTaken))) {
      await breakDeadLock(locker, path)
      if (performance.now() > deadline) {
        const message = `${dirname(path)}: another worker is publishing this job and does not come to an end (${LOCK})`
        throw new StoreError('unavailable', message)
      }
      await sleep(POLL_MS)
    }
  } finally {
    await rm(own.path, { force: true }).catch(() => undefined)
  }
  const renew = () => utimes(path, new Date(), new Date()).catch(() => undefined)
  const timer = setInterval(renew, STALE_MS / 6)
  locks.add(text)
  return async () => {
    clearInterval(timer)
    locks.delete(text)
    if ((await readLock(path)) === text) await rm(path, { force: true }).catch(() => undefined)
  }
}

function isNotTaken(error: unknown): false {
  if (errnoOf(error) !== 'EEXIST') throw error
  return false
}

/** What a lock says; undefined when there is none, or something else of its name. */
export async function readLock(path: string): Promise<string | undefined> {
  const isFile = (await statOf(path).catch(() => undefined))?.isFile()
  return isFile ? readFile(path, 'utf8').catch(() => undefined) : undefined
}

/** Moved aside first: of two that break it at once, the slower one must not remove the lock that the other made since. */
async function breakDeadLock({ publisher, locks }: Locker, path: string): Promise<void> {
  const text = await readLock(path)
  // A directory of that name is an algorithm's.
  if (text === undefined && (await statOf(path))?.isFile() === false) await rm(path, { recursive: true, force: true })
  if (text === undefined) return
  const [identity = ''] = text.split('\n')
  const isForged = identity !== '' && identity === publisher.identity && !locks.has(text)
  const state = isForged ? 'dead' : identity === '' ? 'unknown' : publisher.stateOf(identity)
  const age = Date.now() - ((await statOf(path))?.mtimeMs ?? Date.now())
  if (state === 'alive' || (state === 'unknown' && age < STALE_MS)) return
  const aside = join(dirname(path), `.${Math.random().toString(16).slice(2).padEnd(16, '0').slice(0, 16)}.tmp`)
  const isMoved = await rename(path, aside).then(
    () => true,
    () => false,
  )
  if (!isMoved) return
  if ((await readLock(aside)) !== text) await link(aside, path).catch(() => undefined)
  await rm(aside, { force: true })
}
