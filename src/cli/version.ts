import { readFileSync } from 'node:fs'
import { join } from 'node:path'

const PROJECT = join(import.meta.dirname, '..', '..')

/** Written when the program is built, where a git checkout is: see finish-build.ts. */
export const COMMIT_FILE = join(PROJECT, 'dist', 'commit')

/** `0.1.0 (abc1234)`, or only the version where the commit is not known. */
export function readVersion(): string {
  const { version } = JSON.parse(readFileSync(join(PROJECT, 'package.json'), 'utf8')) as { version: string }
  try {
    return `${version} (${readFileSync(COMMIT_FILE, 'utf8').trim()})`
  } catch {
    return version
  }
}
