/** Running an algorithm as another user: only root can. */

import { execFile } from 'node:child_process'
import { constants, createWriteStream } from 'node:fs'
import { chmod, chown, mkdir, open, readdir, stat } from 'node:fs/promises'
import { userInfo } from 'node:os'
import { dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'

export interface AlgorithmUser {
  readonly name: string
  readonly uid: number
  /** its primary group; it has no other one */
  readonly gid: number
}

/**
 * Finds whom a manifest names.
 * @returns undefined when it is the worker's own user, so that nothing changes; a problem when it cannot be done
 */
export async function findUser(name: string): Promise<AlgorithmUser | undefined | { problem: string }> {
  const [uid, gid] = await Promise.all([askId('-u', name), askId('-g', name)])
  if (uid === undefined || gid === undefined) return { problem: `user: ${name} is no user of this machine` }
  const own = process.geteuid?.()
  if (uid === 0 && name !== 'root')
    return { problem: `user: ${name} is root by another name; write root if you mean it` }
  if (uid === own) return undefined
  if (own === 0) return { name, uid, gid }
  const remedy = 'start the worker as that user, or as root'
  return { problem: `user: the worker runs as ${ownName()} and cannot run anything as ${name}; ${remedy}` }
}

async function askId(what: '-u' | '-g', name: string): Promise<number | undefined> {
  try {
    const { stdout } = await promisify(execFile)('id', [what, '--', name], { timeout: 10_000 })
    return /^\d+\n$/.test(stdout) ? Number(stdout) : undefined
  } catch {
    return undefined
  }
}

function ownName(): string {
  try {
    return userInfo().username
  } catch {
    return `uid ${process.geteuid?.()}`
  }
}

/**
 * Tells whether a user may go down to a directory and start a program; asked of the kernel, which knows of access lists too.
 * @returns undefined when it may
 */
export async function accessProblem(
  { name, uid, gid }: AlgorithmUser,
  dir: string,
  program: string,
): Promise<string | undefined> {
  try {
    const script = 'cd -- "$1" || exit 3; [ -x "$2" ] || exit 4'
    const options = { uid, gid, cwd: '/', env: {}, timeout: 10_000 }
    await promisify(execFile)('/bin/sh', ['-c', script, 'sh', dir, program], options)
    return undefined
  } catch (error) {
    const { code, message } = error as Error & { code?: unknown }
    if (code === 3) return `its user ${name} may not enter ${dir}: open the folders above it to that user (chmod o+x)`
    if (code === 4) return `its user ${name} may not execute ${program}, or not enter the folders above it`
    return `its user ${name} cannot start anything: ${message}`
  }
}

/** Where a run's files lie; see workdir.ts. */
interface Ground {
  readonly path: string
  readonly scratch: string
}

/**
 * Gives a run's scratch directory and the files in it to a user. It may pass the folders above the run's own without
 * listing them, and the run's own, which its group alone can pass: no other run is opened to it.
 * @param above the folders of ours above the run's own
 */
export async function handOver(
  { path, scratch }: Ground,
  { uid, gid }: AlgorithmUser,
  above: readonly string[],
): Promise<void> {
  for (const folder of above) {
    const { mode } = await stat(folder)
    if ((mode & 0o001) === 0) await chmod(folder, (mode & 0o777) | 0o011)
  }
  await chown(path, process.geteuid?.() ?? 0, gid)
  await chmod(path, 0o710)
  for (const name of await readdir(scratch)) {
    await chmod(join(scratch, name), 0o600)
    await chown(join(scratch, name), uid, gid)
  }
  // Last: from here on nothing in it is to be trusted.
  await chown(scratch, uid, gid)
}

/**
 * Copies what a user left into a file of ours: of a file that it may have opened, linked elsewhere or handed on, it could
 * change the content after the publication.
 * @returns what keeps it from being published
 */
export async function takeCopy(
  source: string,
  target: string,
  user: AlgorithmUser,
  signal: AbortSignal,
): Promise<string | undefined> {
  const file = await open(source, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    const stats = await file.stat()
    if (!stats.isFile()) return 'not a regular file'
    // A hard link to what it may not read itself; we, being root, could.
    if (stats.uid !== user.uid) return 'belongs to another user'
    await mkdir(dirname(target), { recursive: true, mode: 0o700 })
    const copy = createWriteStream(target, { flags: 'wx', mode: 0o644 })
    await pipeline(file.createReadStream({ autoClose: false }), copy, { signal })
    return undefined
  } finally {
    await file.close()
  }
}
