import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { describeLines } from '../../src/cli/completion.ts'
import { leaveOut, PROJECT } from '../support/installation.ts'

const BIN = join(PROJECT, 'bin')
let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'qworker-completion-'))
  for (const name of ['harvest', 'hail']) {
    mkdirSync(join(dir, 'mine', name), { recursive: true })
    writeFileSync(join(dir, 'mine', name, 'algorithm.yaml'), '')
  }
  mkdirSync(join(dir, 'mine', 'halves'))
  writeFileSync(join(dir, 'mine', 'README.md'), '')
  writeFileSync(join(dir, 'rc'), 'ALGORITHM_DIRS: [mine, builtin]\n')
  writeFileSync(join(dir, 'my rc'), 'ALGORITHM_DIRS: [mine]\n')
  writeFileSync(join(dir, 'broken rc'), 'ALGORITHM_DIRS: [mine\n')
  writeFileSync(join(dir, 'series.json'), '[]')
  for (const shell of ['bash', 'zsh', 'fish']) {
    writeFileSync(join(dir, `script.${shell}`), run('qworker', ['completion', shell]).stdout)
  }
})
afterAll(() => rmSync(dir, { recursive: true }))

function run(program: string, args: string[], env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync(join(BIN, program), args, {
    cwd: dir,
    env: { PATH: process.env.PATH ?? '', ...env },
    encoding: 'utf8',
  })
  return { status, stdout, stderr }
}

/** What bash offers for the last word, with words split as readline splits them. */
function complete(...words: string[]): string[] {
  const program = `source ./script.bash
spec=$(complete -p "\${1##*/}") || exit
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
case $spec in *"-F _qworker "*) _qworker "$1" "\${!#}" ;; esac
[ \${#COMPREPLY[@]} = 0 ] || printf '%s\\n' "\${COMPREPLY[@]}"`
  const { status, stdout, stderr } = spawnSync('bash', ['--norc', '-c', program, 'bash', ...words], {
    cwd: dir,
    env: { PATH: `${BIN}:${process.env.PATH}`, HOME: dir },
    encoding: 'utf8',
  })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  return stdout.split('\n').filter((line) => line !== '')
}

test.each<[string[], string[]]>([
  [['qworker', 'comp'], ['completion']],
  [
    ['qworker', 'completion', ''],
    ['bash', 'zsh', 'fish'],
  ],
  [['qworker', 'completion', 'f'], ['fish']],
  [['qworker', 'help', 'comp'], ['completion']],
  [['qworker', '--emb'], ['--embedded']],
  [['qworker', '-j', ''], []],
  [['qworker', 'init', 'm'], ['mine']],
  [['qworker', 'check', '--unit', 'ser'], ['series.json']],
  [
    ['qworker', '--color', ''],
    ['auto', 'always', 'never'],
  ],
  [
    ['qworker', '--color', '--ver'],
    ['--version', '--verbose'],
  ],
  [['qproducer', '--color', '=', 'al'], ['always']],
  [
    ['qproducer', '--color', '='],
    ['auto', 'always', 'never'],
  ],
  [['qproducer', '--prio'], ['--priority']],
  [['qproducer', '-c', 'r'], ['rc']],
  [['qproducer', '--config', '=', 'broken'], ['broken rc']],
  [['qproducer', '-c', '~/ser'], ['DIR/series.json']],
  [['qproducer', '-p', '@', 'ser'], ['series.json']],
  [['qproducer', '-p', '@ser'], ['@series.json']],
  [['qproducer', '--payload', '=@', 'ser'], ['series.json']],
  [['qproducer', '-p', '@bro'], ['@broken\\ rc']],
  [['qproducer', '-p', 'ser'], []],
  [['qproducer', '-a', 'fo'], ['forecast']],
  [
    ['qproducer', '--algorithm', '=', 'dr'],
    ['drunken_sailor', 'drunken_sailor_warm'],
  ],
  [[`${BIN}/qproducer`, '-a', 'fo'], ['forecast']],
  [
    ['qproducer', '-c', 'rc', '-a', 'ha'],
    ['hail', 'harvest'],
  ],
  [
    ['qproducer', '--config', '=', 'rc', '-a', 'ha'],
    ['hail', 'harvest'],
  ],
  [
    ['qproducer', '-c', '~/rc', '-a', 'ha'],
    ['hail', 'harvest'],
  ],
  ...['my\\ rc', '"my rc"', "'my rc'", '~/my\\ rc'].map((quoted): [string[], string[]] => [
    ['qproducer', '-c', quoted, '-a', ''],
    ['hail', 'harvest'],
  ]),
  [['qproducer', '-c', 'broken rc', '-a', 'fo'], ['forecast']],
  [['qproducer', '-a', 'README'], []],
  [
    ['drunken-sailor', '--outcome', 'floods'],
    ['floods-stdout', 'floods-stderr'],
  ],
  [['drunken-sailor', 'tor'], ['torture']],
  [['drunken-sailor', 'torture', '--pri'], ['--private']],
  [['drunken-sailor', 'torture', '--broker', 'em'], ['embedded']],
  [['drunken-sailor', '--jour'], []],
])('bash: %j is completed to %j', (words, expected) => {
  expect(complete(...words).sort()).toEqual(expected.map((word) => word.replace('DIR', dir)).sort())
})

test('bash: every option that --help shows is offered, on every command line', async () => {
  for (const { name } of await describeLines()) {
    const [program = '', ...rest] = name.split(' ')
    if (rest[0] === 'help') continue
    const help = run(program, [...rest, '--help']).stdout
    const [, options = ''] = /\nOptions:\n([\s\S]*?)\n\n/.exec(`${help}\n\n`) ?? []
    const shown = options.match(/^ {2}(-\w, )?--[\w-]+/gm)?.map((flags) => flags.split(',').at(-1)?.trim() ?? '') ?? []
    expect(shown).toContain('--help')
    expect(complete(...name.split(' '), '--').sort(), name).toEqual(shown.sort())
  }
})

test('algorithms are listed one a line, from the folders alone; an rc file that is broken is no obstacle', () => {
  const builtin = ['drunken_sailor', 'drunken_sailor_warm', 'forecast', 'mail', 'pi', 'sleep']
  const list = ['completion', '--list', 'algorithms']
  const lines = (names: string[]) => `${names.sort().join('\n')}\n`
  expect(run('qworker', [...list])).toMatchObject({ status: 0, stderr: '' })
  expect(run('qworker', list).stdout).toBe(lines(builtin))
  expect(run('qworker', [...list, '-c', 'broken rc'])).toEqual(run('qworker', list))
  expect(run('qworker', list, { ALGORITHM_DIRS: 'mine' }).stdout).toBe(lines(['hail', 'harvest']))
  expect(run('qworker', list, { ALGORITHM_DIRS: 'nothing' })).toEqual({ status: 0, stdout: '', stderr: '' })
})

test.each([
  [[], 'qworker completion: name a shell: bash, zsh, fish\n  try qworker completion --help\n'],
  [['tcsh'], expect.stringMatching(/'tcsh' is invalid for argument 'shell'\. Allowed choices are bash, zsh, fish\./)],
  [['bash', 'zsh'], expect.stringContaining('too many arguments: "zsh" is not expected')],
])('qworker completion %j is refused with 64', (args, stderr) => {
  expect(run('qworker', ['completion', ...args])).toEqual({ status: 64, stdout: '', stderr })
})

test.for(['bash', 'zsh', 'fish'])('%s takes its script', (shell, context) => {
  if (spawnSync(shell, ['-c', ':']).error !== undefined)
    leaveOut(context, `there is no ${shell} here to read its script`)
  const { status, stderr } = spawnSync(shell, ['-n', join(dir, `script.${shell}`)], { encoding: 'utf8' })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
})
