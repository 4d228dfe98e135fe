import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import type { TortureReport } from '../../src/sailor/torture/torture.ts'
import { isOnBeanstalkd } from '../support/broker.ts'
import { leaveOut, PROJECT, until } from '../support/installation.ts'

/** In a folder for temporary files of its own: what is left there was left by this torture. */
function startTorture(...args: string[]) {
  const folder = mkdtempSync(join(tmpdir(), 'qworker-test-'))
  const program = spawn(join(PROJECT, 'bin', 'drunken-sailor'), ['torture', '--private', ...args], {
    env: { PATH: process.env.PATH, TMPDIR: folder },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const closed = once(program, 'close')
  onTestFinished(async () => {
    program.kill('SIGTERM')
    await closed
    rmSync(folder, { recursive: true, force: true })
  })
  return { program, folder }
}

/** Processes and disks that bear the name of a folder. */
function findTraces(folder: string): string[] {
  const processes = readdirSync('/proc').filter((name) => {
    try {
      return /^\d+$/.test(name) && readFileSync(`/proc/${name}/environ`, 'latin1').includes(`${folder}/`)
    } catch {
      return false
    }
  })
  const disks = readFileSync('/proc/mounts', 'utf8').split('\n')
  return [...processes, ...disks.filter((line) => line.includes(folder)), ...readdirSync(folder)]
}

test('half a minute of torture: what the broker accepted is complete or buried with a reason, once, and nothing is left', async (context) => {
  if (process.platform !== 'linux') leaveOut(context, 'the torture looks at processes through /proc')
  const seed = Math.floor(Math.random() * 2 ** 31)
  console.log(`seed ${seed}`)
  const broker = isOnBeanstalkd ? 'beanstalkd' : 'embedded'
  const { program, folder } = startTorture('--broker', broker, '--minutes', '0.5', '--seed', String(seed), '--json')
  let said = ''
  program.stdout.on('data', (chunk) => {
    said += chunk
  })
  const [code] = await once(program, 'close')
  const report = JSON.parse(said) as TortureReport
  const { verdict } = report
  expect(verdict.accepted).toBeGreaterThan(50)
  expect(verdict.complete).toBeGreaterThan(0)
  expect(verdict.buried).toBeGreaterThan(0)
  expect(Object.keys(report.faults).length).toBeGreaterThan(10)
  expect(code).toBe(verdict.clean ? 0 : 1)
  expect(findTraces(folder)).toEqual([])
  // A finding is told, whatever a second try comes to.
  if (!verdict.clean) console.log(JSON.stringify({ seed, bad: verdict.bad }, null, 1))
  expect(verdict.clean, JSON.stringify({ logs: report.logs, seed, bad: verdict.bad }, null, 1)).toBe(true)
}, 420_000)

test.each(['SIGINT', 'SIGKILL'] as const)(
  'a torture that gets %s leaves no process, no disk and no folder',
  async (signal) => {
    const { program, folder } = startTorture('--minutes', '5')
    const hasRuns = (journal: string) => existsSync(journal) && readdirSync(journal).length > 3
    await until('jobs run', () => readdirSync(folder).some((base) => hasRuns(join(folder, base, 'journal'))))
    const ended = once(program, 'close')
    program.kill(signal)
    expect(await ended).toEqual(signal === 'SIGKILL' ? [null, 'SIGKILL'] : [130, null])
    await until('all is gone', () => findTraces(folder).length === 0, signal === 'SIGKILL' ? 30 : 1)
  },
  120_000,
)

test('a deployment with several servers is refused, with the way to torture one of them', () => {
  const env = { PATH: process.env.PATH, BEANSTALK_SERVER: 'a:1,b' }
  const args = ['torture', '-c', join(PROJECT, 'etc', 'qworkerrc')]
  const { status, stderr } = spawnSync(join(PROJECT, 'bin', 'drunken-sailor'), args, { env, encoding: 'utf8' })
  expect(stderr).toBe(
    'drunken-sailor torture: it tortures one broker, and BEANSTALK_SERVER names 2; choose one of them, as in BEANSTALK_SERVER=a:1 drunken-sailor torture ...\n',
  )
  expect(status).toBe(64)
})
