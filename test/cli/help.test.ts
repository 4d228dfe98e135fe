import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Command } from 'commander'
import { expect, onTestFinished, test } from 'vitest'
import { makeProgram as makeProducer } from '../../src/cli/qproducer-flags.ts'
import { makeProgram as makeWorker } from '../../src/cli/qworker-flags.ts'
import { makeProgram as makeSailor } from '../../src/cli/sailor-flags.ts'
import { SAILOR_SUBCOMMANDS, SUBCOMMANDS } from '../../src/cli/subcommands.ts'
import { PROJECT } from '../support/installation.ts'

function run(words: readonly string[], path = process.env.PATH ?? '') {
  const [program = '', ...args] = words
  const { status, stdout, stderr } = spawnSync(join(PROJECT, 'bin', program), args, {
    env: { PATH: path },
    encoding: 'utf8',
    timeout: 30_000,
  })
  return { status, stdout, stderr }
}

const PROGRAMS: Record<string, { make: () => Command; subcommands: typeof SUBCOMMANDS }> = {
  qworker: { make: makeWorker, subcommands: SUBCOMMANDS },
  qproducer: { make: makeProducer, subcommands: {} },
  'drunken-sailor': { make: makeSailor, subcommands: SAILOR_SUBCOMMANDS },
}

const LINES = Object.entries(PROGRAMS).flatMap(([program, { subcommands }]) => [
  [program],
  ...Object.keys(subcommands).map((word) => [program, word]),
])

/** What each program named in a line of a shell would be given, first word first. */
function wordsOf(line: string): string[][] {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-help-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const noted = join(dir, 'noted')
  for (const folder of ['bin', 'noted']) mkdirSync(join(dir, folder))
  for (const name of [...Object.keys(PROGRAMS), 'jq']) {
    // A file for each: programs of a pipeline run at the same time.
    const script = `#!/bin/sh\nprintf '%s\\0' ${name} "$@" >'${noted}'/$$\n`
    writeFileSync(join(dir, 'bin', name), script)
    chmodSync(join(dir, 'bin', name), 0o755)
  }
  const shell = spawnSync('bash', ['-c', `source() { cat; }\nsudo() { shift 2; "$@"; }\n${line}`], {
    cwd: dir,
    env: { PATH: `${join(dir, 'bin')}:/usr/bin:/bin`, HOME: dir },
    encoding: 'utf8',
  })
  expect(shell.stderr, line).toBe('')
  return readdirSync(noted).map((file) => readFileSync(join(noted, file), 'utf8').split('\0').slice(0, -1))
}

async function programOf(words: readonly string[]): Promise<{ command: Command; args: readonly string[] } | undefined> {
  const [program = '', word = '', ...rest] = words
  const found = PROGRAMS[program]
  if (found === undefined) return undefined
  const subcommand = found.subcommands[word]
  if (subcommand === undefined) return { command: found.make(), args: words.slice(1) }
  return { command: (await subcommand.load()).makeProgram(), args: rest }
}

test.each(LINES.map((words) => ({ line: words.join(' '), words })))(
  '$line --help: to stdout, with 0, and examples that the programs take',
  async ({ line, words }) => {
    const { status, stdout, stderr } = run([...words, '--help'])
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    expect(stdout).toMatch(new RegExp(`^Usage: ${line} \\[options\\]`))
    const examples = /\nExamples:\n((?: {2}.*\n)+)/.exec(stdout)?.[1]?.trimEnd().split('\n') ?? []
    expect(examples.length).toBeGreaterThan(1)
    for (const example of examples) {
      const calls = wordsOf(example)
      expect(calls.map(([program]) => program)).toContain(/qworker|qproducer|drunken-sailor/.exec(example)?.[0])
      for (const call of calls) {
        const found = await programOf(call)
        expect(() => found?.command.parse(found.args, { from: 'user' }), example).not.toThrow()
      }
    }
  },
)

test.each(['qworker', 'drunken-sailor'])('%s help is its --help, which names each of its commands', (program) => {
  const { stdout } = run([program, '--help'])
  expect(run([program, 'help'])).toEqual({ status: 0, stdout, stderr: '' })
  for (const [word, { operands, summary }] of Object.entries(PROGRAMS[program]?.subcommands ?? {})) {
    expect(stdout).toContain(`\n  ${`${word} ${operands}`.trimEnd()} `)
    expect(stdout).toContain(summary)
    expect(run([program, 'help', word])).toEqual(run([program, word, '--help']))
  }
})

test.each<[string[], string]>([
  [['qworker', '--confg', 'x'], 'qworker: unknown option "--confg"; did you mean --config?\n  try qworker --help\n'],
  [
    ['qproducer', '--algoritm=pi'],
    'qproducer: unknown option "--algoritm=pi"; did you mean --algorithm?\n  try qproducer --help\n',
  ],
  [
    ['drunken-sailor', '--wld'],
    'drunken-sailor: unknown option "--wld"; did you mean --wild?\n  try drunken-sailor --help\n',
  ],
  [
    ['drunken-sailor', 'torture', '--minute', '1'],
    'drunken-sailor torture: unknown option "--minute"; did you mean --minutes?\n  try drunken-sailor torture --help\n',
  ],
  [['qworker', '-x'], 'qworker: unknown option "-x"\n  try qworker --help\n'],
  [
    ['drunken-sailor', 'tortrue'],
    'drunken-sailor: unknown command "tortrue"; did you mean torture?\n  try drunken-sailor --help\n',
  ],
  [
    ['drunken-sailor', 'help', 'tortrue'],
    'drunken-sailor: unknown command "tortrue"; did you mean torture?\n  try drunken-sailor --help\n',
  ],
  [
    ['drunken-sailor', '-v', 'torture'],
    'drunken-sailor: a command stands before all options: drunken-sailor torture ...\n  try drunken-sailor --help\n',
  ],
  [
    ['drunken-sailor', 'repair'],
    'drunken-sailor: unknown command "repair"; there are torture, help\n  try drunken-sailor --help\n',
  ],
  [['qworker', '--tube'], "qworker: option '--tube <name>' argument missing\n  try qworker --help\n"],
])('%j is refused with 64, on stderr alone, with what was meant', (words, complaint) => {
  expect(run(words)).toEqual({ status: 64, stdout: '', stderr: complaint })
})
