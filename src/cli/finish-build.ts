/**
 * The last step of the build: dist/ holds what src/ makes and no more, so that a package does; `qproducer` as few files;
 * and the commit that it was made from. Without a git checkout of ours there is none.
 */

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { build } from 'rolldown'
import { COMMIT_FILE } from './version.ts'

const dist = realpathSync(dirname(COMMIT_FILE))
const root = dirname(dist)

function removeStale(): void {
  for (const file of readdirSync(dist, { recursive: true, encoding: 'utf8' })) {
    const source = /^(.*)\.js(\.map)?$/.exec(file)?.[1]
    const isOfNone = source !== undefined && !existsSync(join(root, 'src', `${source}.ts`))
    if (isOfNone || file.endsWith('.cjs')) rmSync(join(dist, file))
  }
}

/**
 * `qproducer` is called for each job, and loading its modules one by one takes longer than all that it does. It becomes
 * one file with what a single job needs, and one for each thing that is loaded later. They hold our own code alone: what
 * is from others stays where it is installed. CommonJS, for Node 20 starts the loader of ES modules only when asked.
 */
async function bundleProducer(): Promise<void> {
  const folder = join(dist, 'cli')
  await build({
    input: join(folder, 'qproducer.js'),
    platform: 'node',
    external: /^[^./]/,
    // Parts that are loaded later take what they share from the first one, and not from a file more.
    preserveEntrySignatures: 'allow-extension',
    plugins: [{ name: 'places', transform: (code, file) => placeIn(folder, code, file) }],
    output: {
      dir: folder,
      format: 'cjs',
      entryFileNames: '[name].cjs',
      chunkFileNames: 'qproducer-[name].cjs',
      comments: false,
    },
  })
}

/** A module finds files beside it by its folder, which is that of the bundle now. */
function placeIn(folder: string, code: string, file: string): string {
  const path = JSON.stringify(relative(folder, dirname(file)))
  return code.replaceAll('import.meta.dirname', `require('node:path').join(__dirname, ${path})`)
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
await bundleProducer()
noteCommit()
