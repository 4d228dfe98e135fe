/** How our programs are called on this machine, so that a command that we print can be taken as it stands. */

import { readFileSync, realpathSync } from 'node:fs'
import { basename, delimiter, dirname, isAbsolute, join, resolve } from 'node:path'

/** Words before the options, quoted for a POSIX shell. */
export interface Invocation {
  readonly qworker: string
  readonly qproducer: string
}

/** From `src/cli/` in a checkout and from `dist/cli/` in an installation alike. */
const OWN_BIN = resolve(import.meta.dirname, '..', '..', 'bin')

/**
 * By name where that is us in PATH; by `npx` where that brought us here; else by absolute path, which works from any
 * folder.
 * @param called the program as it was called (argv[1]): links in it are not followed
 * @param path the PATH of the caller. npx and `npm run` set folders of their own before it, which are gone afterwards
 * @param ownBin folder of our programs
 */
export function findInvocation(called: string, path: string, ownBin = OWN_BIN): Invocation {
  const folders = path.split(delimiter).filter((dir) => isAbsolute(dir) && !dir.endsWith('/node_modules/.bin'))
  const isOurs = (name: string) => {
    const file = folders.map((dir) => follow(join(dir, name))).find((found) => found !== undefined)
    return file !== undefined && file === follow(join(ownBin, name))
  }
  const asNamed = (name: string) => (isOurs(name) ? name : undefined)
  const spec = findNpxSpec(called)
  const byNpx = (name: string) => (spec === undefined ? undefined : `npx -p ${quote(spec)} ${name}`)
  const byPath = (name: string) => {
    const beside = join(dirname(called), name)
    // A link of another name, or to one of the two alone, says nothing about the other.
    return quote(basename(called) === 'qworker' && follow(beside) !== undefined ? beside : join(ownBin, name))
  }
  const nameOf = (name: string) => asNamed(name) ?? byNpx(name) ?? byPath(name)
  return { qworker: nameOf('qworker'), qproducer: nameOf('qproducer') }
}

/** What was given to npx: it notes that in the package.json of the folder that it installs into. */
function findNpxSpec(called: string): string | undefined {
  const folder = /^(.*\/_npx\/[^/]+)\/node_modules\/\.bin\/[^/]+$/.exec(called)?.[1]
  if (folder === undefined) return undefined
  try {
    const note: unknown = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
    const packages = (note as { _npx?: { packages?: unknown } } | null)?._npx?.packages
    const [spec, ...more] = Array.isArray(packages) ? packages : []
    if (typeof spec !== 'string' || more.length > 0) return undefined
    // What is relative to the caller's folder means nothing in another.
    return /^(file:)?\.{1,2}(\/|$)/.test(spec) ? undefined : spec
  } catch {
    return undefined
  }
}

function follow(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch {
    return undefined
  }
}

/** One word, for a POSIX shell. */
export function quote(word: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
}
