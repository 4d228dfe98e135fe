/**
 * The last step of the build: dist/ holds what src/ makes and no more, so that a package does, and the commit that it was
 * made from. Without a git checkout of ours there is none.
 */

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { COMMIT_FILE } from './version.ts'

const dist = realpathSync(dirname(COMMIT_FILE))
const root = dirname(dist)

function removeStale(): void {
  for (const file of readdirSync(dist, { recursive: true, encoding: 'utf8' })) {
    const source = /^(.*)\.js(\.map)?$/.exec(file)?.[1]
    if (source !== undefined && !existsSync(join(root, 'src', `${source}.ts`))) rmSync(join(dist, file))
  }
}

function git(...args: string[]): string | undefined {
  const { status, stdout } = spawnSync('git', args, { cwd: root, encoding: 'utf8' })
  return status === 0 ? stdout.trim() : undefined
}

function noteCommit(): void {
  // Sources that were unpacked somewhere inside of another project's checkout are none of its commits.
  const isOurs = git('rev-parse', '--show-toplevel') === root
  const commit = isOurs ? git('describe', '--always', '--dirty', '--abbrev=7', '--exclude=*') : undefined
  if (commit === undefined) rmSync(COMMIT_FILE, { force: true })
  else writeFileSync(COMMIT_FILE, `${commit}\n`)
}

removeStale()
noteCommit()
