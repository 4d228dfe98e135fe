/** What can be wrong with a tracker's SQLite file, and what to do about it. */

import { TrackerError, type TrackerErrorCode } from './tracker.ts'

export const STARTING_ANEW =
  'Or stop all workers that use it and move it away, with its -wal and -shm: attempts are then counted anew from the status documents, and copies to S3 that are still to be made are forgotten'

export function damage(path: string, found: string): string {
  const remedy = STARTING_ANEW.replace('Or stop', 'stop')
  return `the tracker ${path} is damaged or no database (${found.trim().replaceAll('\n', '; ')}): ${remedy}`
}

/** What SQLite or the system said, in our words. */
export function problemOf(error: unknown, path: string, patienceMs: number): TrackerError {
  if (error instanceof TrackerError) return error
  const { message } = error instanceof Error ? error : { message: String(error) }
  // libsql has no code for what fails at opening; its message ends with SQLite's number, 14 being SQLITE_CANTOPEN.
  const sqlite = codeOf(error) ?? (/ConnectionFailed\(.*: 14"\)$/.test(message) ? 'SQLITE_CANTOPEN' : undefined)
  const code = KINDS.find(([words]) => words.test(sqlite ?? ''))?.[1] ?? 'failed'
  return new TrackerError(code, explain(code, path, patienceMs, `${sqlite ?? 'unknown'}: ${message}`), error)
}

function explain(code: TrackerErrorCode, path: string, patienceMs: number, came: string): string {
  switch (code) {
    case 'corrupt':
      return damage(path, came)
    case 'denied':
      return `the tracker ${path} cannot be written (${came}): give this user write permission on the file and its directory, or mount the disk for writing`
    case 'full':
      return `the tracker ${path} has no space left (${came}): free some on its disk`
    case 'busy': {
      const what = `another process has held the tracker ${path} for more than ${patienceMs / 1000} s`
      return `${what}: look who has it open (fuser ${path}), and continue or end the one that is stopped or hangs`
    }
    case 'newer':
    case 'failed':
      return `the tracker ${path} failed (${came}): if that speaks of input or output, see the system log for its disk`
    default:
      throw new Error(`unknown code ${code satisfies never}`)
  }
}

/** IOERR_SHMSIZE: the shared memory file beside the tracker could not grow, which a full disk refuses first. */
const KINDS: readonly (readonly [RegExp, TrackerErrorCode])[] = [
  [/^SQLITE_(CORRUPT|NOTADB)/, 'corrupt'],
  [/^(SQLITE_FULL|SQLITE_IOERR_SHMSIZE|ENOSPC|EDQUOT)$/, 'full'],
  [/^SQLITE_(BUSY|LOCKED|PROTOCOL)/, 'busy'],
  [/^(SQLITE_(READONLY|CANTOPEN|PERM|AUTH)|E(ACCES|PERM|ROFS|NOTDIR|ISDIR|LOOP|NAMETOOLONG)$)/, 'denied'],
]

export function codeOf(error: unknown): string | undefined {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  return typeof code === 'string' ? code : undefined
}
