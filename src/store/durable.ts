/**
 * What survives the loss of power, and where the local store asks for it. The promise: a job leaves its queue only when
 * its result is durable, and a result.json that is there is whole, with its status.json, logs and outputs.
 *
 * A job that has no directory yet (`whole.ts`) waits for the disk twice:
 *
 * 1. The bytes of every file, and the names in the directory that has no name of its own yet. Empty files have no bytes,
 *    and are not even opened.
 * 2. The name of that directory in its shard, before anybody is told that the job is published. That of the shard in the
 *    base only once in the life of a process.
 *
 * One that was published to before (`local.ts`) waits three times, and nothing else in the store waits:
 *
 * 1. The bytes of every file, before any gets its published name: otherwise a name could be there without its bytes, and
 *    what an earlier attempt published would be lost with it. Where nothing was published before, nothing can be lost:
 *    then this is one wait with the next.
 * 2. The names of all that but the result, before result.json gets its own: file systems with a journal keep the order of
 *    names, but not all of them that of files which were not synced themselves (btrfs), and others none at all. With it
 *    the name of the job's directory in its shard, which mkdir(2) made, whoever called it: a sync of a directory need
 *    not save its own name.
 * 3. The name of result.json, as above.
 *
 * Who finds a result whose publisher died does not know whether that came to its end, and syncs these names again (`tidy`).
 * The lock and temporary names need none: after a loss of power their owner is dead, and they are swept.
 *
 * Syncs go through the thread pool, those of one step at once, so that one commit of a journal serves them all. All else
 * that is done to a name or to a small file is done at once: the result directory must be local (the tracker's WAL is on
 * it), and a trip to the thread pool costs ten times what such a call does.
 */

import { closeSync, constants, fdatasync, fsync, openSync } from 'node:fs'

/**
 * Makes the bytes behind all descriptors durable (with the length of the file, which is all that a reader needs beside
 * them), and the names in all directories, at the same time. The descriptors are closed, and their list is empty then.
 */
export async function sync(descriptors: number[], directories: readonly string[] = []): Promise<void> {
  const names: number[] = []
  try {
    for (const path of directories) names.push(openSync(path, constants.O_RDONLY | constants.O_DIRECTORY))
    if (descriptors.length + names.length > 0) await syncAll(descriptors, names)
    closeAll(descriptors)
  } finally {
    closeAll(names)
  }
}

/** Settles when all have ended, whatever became of them: none is closed while another thread still syncs it. */
function syncAll(files: readonly number[], directories: readonly number[]): Promise<void> {
  return new Promise((resolve, reject) => {
    let waiting = files.length + directories.length
    let failure: Error | null = null
    const onEnd = (error: Error | null) => {
      failure ??= error
      if (--waiting > 0) return
      if (failure === null) resolve()
      else reject(failure)
    }
    for (const descriptor of files) fdatasync(descriptor, onEnd)
    for (const descriptor of directories) fsync(descriptor, onEnd)
  })
}

export function closeAll(descriptors: number[]): void {
  for (const descriptor of descriptors.splice(0)) closeSync(descriptor)
}
