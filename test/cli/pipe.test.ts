/** Readers that leave early, as head(1) does, and descriptors that are closed: nobody is harmed. */

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { startBroker } from '../support/broker.ts'
import { install, PROJECT } from '../support/installation.ts'

/** The program ends with a code, which a file gets; what reads its stdout is gone before it writes. */
function runUnread(line: string, env: Record<string, string> = {}, redirection = '2>stderr') {
  const cwd = mkdtempSync(join(tmpdir(), 'qworker-pipe-'))
  onTestFinished(() => rmSync(cwd, { recursive: true }))
  const script = `{ (${line}) ${redirection}; echo $? >code; } | :`
  const { status, stderr } = spawnSync('/bin/sh', ['-c', script], {
    cwd,
    env: { PATH: `${join(PROJECT, 'bin')}:${process.env.PATH}`, ...env },
    encoding: 'utf8',
    timeout: 45_000,
  })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  const told = redirection === '2>stderr' ? readFileSync(join(cwd, 'stderr'), 'utf8') : ''
  return { code: readFileSync(join(cwd, 'code'), 'utf8').trim(), stderr: told }
}

test.each([
  'qworker --help',
  'qworker help',
  'qworker --version',
  'qworker completion bash',
  'qworker completion --list algorithms',
  'qproducer --help',
  'drunken-sailor --help',
  'drunken-sailor --list',
  'drunken-sailor --list --json',
  'drunken-sailor torture --help',
])('%s ends with 0 and says nothing when nobody reads it', (line) => {
  expect(runUnread(line)).toEqual({ code: '0', stderr: '' })
  expect(runUnread(line, {}, '2>&1').code).toBe('0')
  expect(runUnread(line, {}, '>&- 2>&-').code).toBe('0')
})

test.each(['qworker --x', 'qproducer --x', 'drunken-sailor --x', 'drunken-sailor torture --x', 'qworker completion x'])(
  '%s is refused with 64, also when nobody reads why',
  (line) => {
    expect(runUnread(line, {}, '2>&1').code).toBe('64')
    expect(runUnread(line, {}, '2>&-').code).toBe('64')
  },
)

test.each([
  ['a batch', 'seq 1000 | qproducer -a sleep --batch - -v', 1000],
  ['a batch that is told as JSON', 'seq 1000 | qproducer -a sleep --batch - --json', 1000],
  ['a job', 'qproducer -a sleep', 1],
  ['a job that is told as JSON', 'qproducer -a sleep --json', 1],
])('%s is put as a whole when nobody reads what is told of it', async (_, line, jobs) => {
  const broker = await startBroker()
  onTestFinished(() => broker.stop())
  const env = { BEANSTALK_SERVER: broker.host, BEANSTALK_PORT: String(broker.port) }
  expect(runUnread(line, env)).toEqual({ code: '0', stderr: '' })
  expect(await broker.stat('cmd-put')).toBe(jobs)
})

test.each([
  ['text', '-v --color always'],
  ['text', ''],
  ['json', ''],
])('a worker whose %s log nobody reads (%s) does its job, and tells its end by its code', async (format, args) => {
  const home = await install()
  home.addAlgorithm('speaks', 'seq 200; exit $(grep -c fail input.json)', 'output: text\n')
  const env = {
    BEANSTALK_SERVER: '127.0.0.1',
    BEANSTALK_PORT: String(home.broker.port),
    RESULT_BASEDIR: home.results,
    ALGORITHM_DIRS: home.algorithms,
    HTTP_PORT: '0',
    LOG_FORMAT: format,
    LOG_LEVEL: 'debug',
  }
  const good = await home.putJob('speaks')
  expect(runUnread(`qworker --once ${args}`, env)).toEqual({ code: '0', stderr: '' })
  expect(home.status(good)?.state).toBe('complete')
  const bad = await home.putJob('speaks', 'fail')
  expect(runUnread(`qworker --once ${args}`, env, '2>&1').code).toBe('1')
  expect(home.status(bad)?.attempts).toHaveLength(1)
})
