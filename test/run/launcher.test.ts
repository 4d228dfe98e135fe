import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { type Exit, type Launched, type Launcher, openLauncher, type Task } from '../../src/run/launcher.ts'
import { hasProc, readProcess } from '../../src/run/look.ts'
import { runAlgorithm } from '../../src/run/run.ts'
import { findLeftovers, findSleepers, type Ground, makeRequest, openGround, runScript, until } from './ground.ts'

if (!hasProc) console.log('the tests of the launcher are left out: it needs /proc')
const onLinux = test.skipIf(!hasProc)

interface Bench {
  readonly dir: string
  readonly launcher: Launcher
  start(words: readonly string[], rest?: Partial<Task>): Promise<Launched>
  stdout(): string
}

function openBench(): Bench {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-launcher-'))
  const launcher = openLauncher('w1-bench')
  onTestFinished(() => {
    launcher.close()
    rmSync(dir, { recursive: true, force: true })
  })
  const [stdout, stderr] = [join(dir, 'stdout'), join(dir, 'stderr')]
  const start = async (words: readonly string[], rest: Partial<Task> = {}) => {
    const task = { words, environment: {}, directory: dir, stdin: '/dev/null', stdout, stderr, ...rest }
    const launched = await launcher.start(task)
    if (launched === undefined || 'problem' in launched) throw new Error(`not launched: ${JSON.stringify(launched)}`)
    return launched
  }
  return { dir, launcher, start, stdout: () => readFileSync(stdout, 'utf8') }
}

const sh = (script: string) => ['/bin/sh', '-c', script]
const isGone = (pid: number) => readProcess(pid) === undefined

onLinux.each<[string, Exit]>([
  ['exit 0', { exitCode: 0, signal: undefined }],
  ['exit 65', { exitCode: 65, signal: undefined }],
  ['exit 126', { exitCode: 126, signal: undefined }],
  ['exit 127', { exitCode: 127, signal: undefined }],
  ['exit 137', { exitCode: 137, signal: undefined }],
  ['exit 255', { exitCode: 255, signal: undefined }],
  ['kill -KILL $$', { exitCode: null, signal: 'SIGKILL' }],
  ['kill -TERM $$', { exitCode: null, signal: 'SIGTERM' }],
  ['kill -SEGV $$', { exitCode: null, signal: 'SIGSEGV' }],
  ['kill -HUP $$', { exitCode: null, signal: 'SIGHUP' }],
  ['kill -XCPU $$', { exitCode: null, signal: 'SIGXCPU' }],
  // What shells say nothing of is told as they tell it.
  ['kill -PIPE $$', { exitCode: 141, signal: undefined }],
  ['kill -INT $$', { exitCode: 130, signal: undefined }],
])('%s is told as it was', async (script, exit) => {
  const { start } = openBench()
  expect(await (await start(sh(script))).exited).toEqual(exit)
})

onLinux('words and values reach the program as they are, whatever a shell would make of them', async () => {
  const { start, stdout } = openBench()
  const nasty = [
    "'",
    '"',
    '$(touch owned)',
    '`id`',
    '\\',
    'a\nb',
    '*',
    '',
    ' ',
    "'; exit 3; '",
    'ü\u0001',
    '~',
    '!!',
    '-n',
  ]
  const environment = Object.fromEntries(nasty.map((value, i) => [`V${i}`, value]))
  const node = `for (const v of process.argv.slice(1)) console.log(JSON.stringify(v));
    for (let i = 0; i < ${nasty.length}; i++) console.log(JSON.stringify(process.env['V' + i]))`
  const launched = await start([process.execPath, '-e', node, '--', ...nasty], { environment })
  expect(await launched.exited).toEqual({ exitCode: 0, signal: undefined })
  expect(
    stdout()
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line)),
  ).toEqual([...nasty, ...nasty])
})

onLinux(
  'a program has the environment that was asked for and no other, and no signal is ignored or blocked',
  async () => {
    const { start, stdout } = openBench()
    const environment = { PATH: '/usr/bin:/bin', A: '1' }
    const launched = await start(
      ['/bin/sh', '-c', 'tr "\\0" "\\n" </proc/$$/environ; exec grep -E "^Sig(Ign|Blk)" /proc/self/status'],
      {
        environment,
      },
    )
    await launched.exited
    const lines = stdout().trim().split('\n')
    expect(lines.filter((line) => !line.startsWith('Sig')).sort()).toEqual(['A=1', 'PATH=/usr/bin:/bin'])
    expect(lines.filter((line) => line.startsWith('Sig'))).toEqual([
      'SigBlk:\t0000000000000000',
      'SigIgn:\t0000000000000000',
    ])
  },
)

onLinux('a variable that is the shell’s own is left to Node', async () => {
  const { launcher, dir } = openBench()
  const task = { words: ['/bin/true'], directory: dir, stdin: '/dev/null', stdout: '/dev/null', stderr: '/dev/null' }
  for (const name of ['IFS', 'PWD', 'UID', 'PPID', 'BASH_ENV', 'OPTIND', 'SHELLOPTS'])
    expect(await launcher.start({ ...task, environment: { [name]: '1' } }), name).toBeUndefined()
  const report = await runScript(openGround(), 'echo "$OPTIND"', { manifest: { env: { OPTIND: '7' } } })
  expect(report).toMatchObject({ outcome: { kind: 'success' } })
})

onLinux('one shell serves one task after the other; after it was replaced there is another', async () => {
  const { start, launcher } = openBench()
  const leaders: number[] = []
  for (let i = 0; i < 3; i++) {
    const launched = await start(['/bin/true'])
    await launched.exited
    leaders.push(launched.leader.pid)
  }
  expect(new Set(leaders).size).toBe(1)
  launcher.replace()
  const launched = await start(['/bin/true'])
  await launched.exited
  expect(launched.leader.pid).not.toBe(leaders[0])
  await until('the first one is gone', () => isGone(leaders[0] as number))
})

onLinux('a shell that dies between two tasks is replaced unnoticed', async () => {
  const { start } = openBench()
  const first = await start(['/bin/true'])
  await first.exited
  process.kill(first.leader.pid, 'SIGKILL')
  await until('it is gone', () => isGone(first.leader.pid))
  await new Promise((resolve) => setTimeout(resolve, 50))
  expect(await (await start(sh('exit 3'))).exited).toEqual({ exitCode: 3, signal: undefined })
})

onLinux('what cannot be set up is told with its reason, and nothing was started', async () => {
  const { launcher, dir } = openBench()
  const task = { words: ['/bin/true'], environment: {}, directory: dir, stdin: '/dev/null' }
  const streams = { stdout: '/dev/null', stderr: '/dev/null' }
  const problems = [
    await launcher.start({ ...task, ...streams, directory: join(dir, 'gone') }),
    await launcher.start({ ...task, ...streams, stdin: join(dir, 'gone') }),
    await launcher.start({ ...task, stdout: join(dir, 'gone', 'x'), stderr: '/dev/null' }),
  ]
  for (const problem of problems) expect(problem).toEqual({ problem: expect.stringContaining('gone') })
})

onLinux('a run that signals its own group does not take the launcher along', async () => {
  const ground = openGround()
  const report = await runScript(ground, 'trap "exit 7" TERM; kill -TERM 0; sleep 10')
  expect(report).toMatchObject({ outcome: { kind: 'failed', exitCode: 7 } })
  expect(findLeftovers(ground)).toEqual([])
  const limits = await runScript(ground, 'trap : PROF XCPU XFSZ; for s in PROF XCPU XFSZ; do kill -$s 0; done; exit 7')
  expect(limits).toMatchObject({ outcome: { kind: 'failed', exitCode: 7 }, kill: undefined })
})

onLinux(
  'what a run leaves is found also when another run, which ended meanwhile, had nothing to do with it',
  async () => {
    const [short, long] = [openGround(), openGround()]
    const waits = (ground: Ground) => `while [ ! -e ${ground.dir}/end ]; do sleep 0.1; done`
    const started: number[] = []
    const first = runScript(short, waits(short), { onStarted: (pid) => void started.push(pid) })
    await until('the first one', () => started.length === 1)
    const second = runScript(long, `setsid sh -c "sleep $NAP </dev/null >/dev/null 2>&1 &"; ${waits(long)}`)
    await until('what it leaves', () => findSleepers(long).length === 1)
    writeFileSync(join(short.dir, 'end'), '')
    expect((await first).kill).toBeUndefined()
    expect(findSleepers(long).length).toBe(1)
    writeFileSync(join(long.dir, 'end'), '')
    expect((await second).kill).toMatchObject({ survivors: [] })
    expect(findSleepers(long)).toEqual([])
  },
)

onLinux(
  'a run that kills its launcher, or its whole group, is over: it died by that signal, and nothing is left',
  async () => {
    for (const script of ['kill -KILL $PPID; sleep $NAP', 'kill -KILL 0; sleep $NAP']) {
      const ground = openGround()
      const report = await runScript(ground, script)
      expect(report, script).toMatchObject({ outcome: { kind: 'signalled', signal: 'SIGKILL' } })
      expect(findSleepers(ground)).toEqual([])
      expect(findLeftovers(ground)).toEqual([])
    }
  },
)

onLinux('a run that stops its launcher goes on and ends', async () => {
  const report = await runScript(openGround(), 'kill -STOP $PPID; (sleep 0.3; kill -CONT $PPID) & echo 1; wait')
  expect(report).toMatchObject({ outcome: { kind: 'success' }, resultJson: '1\n' })
})

onLinux('after a kill the next run has another shell', async () => {
  const ground = openGround()
  const request = await makeRequest(ground, {
    manifest: { command: ['/bin/sh', '-c', '[ -e ../../second ] && exit 0; touch ../../second; sleep $NAP'] },
    limitSeconds: 0.3,
  })
  const report = await runAlgorithm(request)
  expect(report).toMatchObject({ outcome: { kind: 'timed_out' }, kill: { survivors: [] } })
  expect(report.kill?.signals.map(({ signal }) => signal)).toEqual(['SIGTERM'])
  const again = await runAlgorithm({ ...request, limitSeconds: 60 })
  expect(again.outcome.kind).toBe('success')
})

onLinux('a shell ends when its worker’s end of the pipe does', async () => {
  const { start, dir } = openBench()
  const program = join(dir, 'worker.mjs')
  const source = new URL('../../dist/run/launcher.js', import.meta.url).href
  writeFileSync(
    program,
    `import { openLauncher } from ${JSON.stringify(source)}
const none = '/dev/null'
const task = { words: ['/bin/true'], environment: {}, directory: '/', stdin: none, stdout: none, stderr: none }
const launched = await openLauncher('w1-dies').start(task)
await launched.exited
console.log(launched.leader.pid)
process.kill(process.pid, 'SIGKILL')`,
  )
  const launched = await start([process.execPath, program])
  await launched.exited
  const pid = Number(readFileSync(join(dir, 'stdout'), 'utf8'))
  expect(pid).toBeGreaterThan(1)
  await until('the shell is gone', () => isGone(pid))
})

onLinux(
  'a shell that cannot be started for want of descriptors is tried again, and is used when there are some',
  async () => {
    const { start, dir, stdout } = openBench()
    const program = join(dir, 'worker.mjs')
    const source = new URL('../../dist/run/launcher.js', import.meta.url).href
    writeFileSync(
      program,
      `import { closeSync, openSync } from 'node:fs'
import { openLauncher } from ${JSON.stringify(source)}
const none = '/dev/null'
const task = { words: ['/bin/true'], environment: {}, directory: '/', stdin: none, stdout: none, stderr: none }
const taken = []
try { for (;;) taken.push(openSync(none)) } catch {}
const launcher = openLauncher('w1-poor')
const first = await launcher.start(task)
for (const fd of taken) closeSync(fd)
const second = await launcher.start(task)
await second?.exited
console.log(first === undefined, second?.pid > 1)
launcher.close()`,
    )
    const launched = await start(['/bin/sh', '-c', 'ulimit -n 100; exec "$@"', 'sh', process.execPath, program])
    expect(await launched.exited).toEqual({ exitCode: 0, signal: undefined })
    expect(stdout()).toBe('true true\n')
  },
)
