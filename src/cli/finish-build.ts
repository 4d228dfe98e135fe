/** The last step of the build: notes the commit that it was made from. Without a git checkout of ours there is none. */

import { spawnSync } from 'node:child_process'
import { realpathSync, rmSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { COMMIT_FILE } from './version.ts'

const root = realpathSync(dirname(dirname(COMMIT_FILE)))

function git(...args: string[]): string | undefined {
  const { status, stdout } = spawnSync('git', args, { cwd: root, encoding: 'utf8' })
  return status === 0 ? stdout.trim() : undefined
}

// Sources that were unpacked somewhere inside of another project's checkout are none of its commits.
const commit =
  git('rev-parse', '--show-toplevel') === root
    ? git('describe', '--always', '--dirty', '--abbrev=7', '--exclude=*')
    : undefined
if (commit === undefined) rmSync(COMMIT_FILE, { force: true })
else writeFileSync(COMMIT_FILE, `${commit}\n`)
