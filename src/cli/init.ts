/** `qworker init`: writes a small project that works, from the files of `etc/project/`. */

import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import type { Command } from 'commander'
import { algorithmEnvironment } from '../config.ts'
import { makeCommand, parseCommandLine } from './command.ts'
import { complain, EXIT, writeOut } from './exit.ts'
import { findInvocation, type Invocation, quote } from './invocation.ts'

const NAME = 'qworker init'
const TEMPLATE = resolve(import.meta.dirname, '..', '..', 'etc', 'project')
/** npm leaves files of that name out of a package. */
const RENAMED: Readonly<Record<string, string>> = { 'results/gitignore': 'results/.gitignore' }

export function makeProgram(): Command {
  return makeCommand(NAME)
    .description(
      'Writes a small project that works: rc files for worker and producer, one algorithm to start from, a folder for results.',
    )
    .argument('<dir>', 'folder of the project; it must not exist yet, or be empty')
    .addHelpText(
      'after',
      `
Nothing is overwritten. The broker is embedded in the worker: nothing else needs to be installed or started.

Examples:
  qworker init jobs
  qworker init . && qworker -c qworkerrc`,
    )
}

/** @param args what follows the word init; resolves to the exit code */
export async function run(args: readonly string[]): Promise<number> {
  const program = makeProgram()
  await parseCommandLine(program, args)
  const [named = ''] = program.args
  if (named === '') {
    complain(NAME, 'a folder has a name; this is empty text')
    return EXIT.usage
  }
  const dir = resolve(named)
  const invocation = findInvocation(process.argv[1] ?? '', algorithmEnvironment().PATH)
  const problem = findOccupant(dir) ?? writeProject(dir, invocation)
  if (problem !== undefined) {
    complain(NAME, problem)
    return EXIT.cantCreate
  }
  await writeOut(nextSteps(dir, invocation))
  return EXIT.ok
}

/** Absolute paths: the second command is for another terminal, which is in another folder. */
function nextSteps(dir: string, { qworker, qproducer }: Invocation): string {
  const here = `cd ${quote(dir)} &&`
  return `made ${dir}

Start the worker (Ctrl-C ends it):

    ${here} ${qworker} -c qworkerrc

Put a job, in another terminal, and see its result:

    ${here} ${qproducer} -c qproducerrc -a hello -p '{"name":"you"}' --wait

See whether all is well: ${qworker} check -c ${quote(join(dir, 'qworkerrc'))}
What is what: ${join(dir, 'README.md')}
`
}

/** @returns why it cannot be written, if it cannot; then nothing is left of it */
function writeProject(dir: string, invocation: Invocation): string | undefined {
  /** what takes away what was made, the oldest first */
  const undo: (() => void)[] = []
  try {
    makeFolder(dir, undo)
    for (const file of readTemplate()) {
      const path = join(dir, file.name)
      makeFolder(dirname(path), undo)
      makeFile(
        path,
        file.text.replaceAll(/\{\{(qworker|qproducer)\}\}/g, (_, name: keyof Invocation) => invocation[name]),
        undo,
      )
    }
  } catch (error) {
    for (const takeAway of undo.reverse()) {
      try {
        takeAway()
      } catch {
        // Somebody else put something into it, or the disk failed: the message below tells of the folder.
      }
    }
    return explain(dir, error)
  }
  return undefined
}

/** What hinders at the start: something is there. */
function findOccupant(dir: string): string | undefined {
  let entries: string[]
  try {
    entries = readdirSync(dir)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    if (code !== 'ENOTDIR' || !existsSync(dir)) return explain(dir, error)
    return `${dir} is there already and is no folder; name one that is not there yet`
  }
  if (entries.length === 0) return undefined
  const found = entries.slice(0, 3).join(', ') + (entries.length > 3 ? ', ...' : '')
  return `${dir} is not empty (${found}), and nothing is overwritten; name a folder that is not there yet, or an empty one`
}

/** With the folders above it that are missing. */
function makeFolder(path: string, undo: (() => void)[]): void {
  try {
    mkdirSync(path)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST' && statSync(path).isDirectory()) return
    if (code !== 'ENOENT' || dirname(path) === path) throw error
    makeFolder(dirname(path), undo)
    mkdirSync(path)
  }
  undo.push(() => rmdirSync(path))
}

/** Never over a file that is there: another init may be at work in the same folder. */
function makeFile(path: string, text: string, undo: (() => void)[]): void {
  const file = openSync(path, 'wx')
  undo.push(() => unlinkSync(path))
  try {
    writeFileSync(file, text)
  } finally {
    closeSync(file)
  }
}

function readTemplate(): { name: string; text: string }[] {
  return readdirSync(TEMPLATE, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => {
      const path = join(entry.parentPath, entry.name)
      const name = path.slice(TEMPLATE.length + 1)
      return { name: RENAMED[name] ?? name, text: readFileSync(path, 'utf8') }
    })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
}

function explain(dir: string, error: unknown): string {
  const { code, path = dir, message } = error as NodeJS.ErrnoException
  switch (code) {
    case 'EACCES':
    case 'EPERM':
      return `${path} cannot be made: this user may not write there (${code}); name another folder`
    case 'EROFS':
      return `${path} cannot be made: its disk is read-only (${code}); name a folder on another`
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG':
      return `${path} cannot be written: there is no room for it (${code}); free space, and try again`
    case 'ENOTDIR':
      return `${path} cannot be made: what stands above it is no folder (${code}); name another`
    case 'EEXIST':
      return `${path} came while the project was written; name a folder that nobody else uses`
    default:
      return `${path} cannot be made (${code ?? message}); name another folder`
  }
}
