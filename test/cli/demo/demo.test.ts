import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { stripVTControlCharacters } from 'node:util'
import { expect, onTestFinished, test } from 'vitest'
import { leaveOut, PROJECT } from '../../support/installation.ts'
import { DEMO, expectNothingLeft, findProcesses, makeStranger, startDemo } from './stranger.ts'

const SHORT = '[0-9a-f]{8}'
const TIME = String.raw`^ *\d+\.\d s  `

test('somebody with nothing but Node sees both jobs to their ends, a plot and where the result is; nothing is left', async () => {
  const stranger = makeStranger()
  const demo = startDemo(stranger)
  expect(await demo.ended, demo.said.stderr).toBe(0)
  const { stdout, stderr } = demo.said
  expect(stderr).toBe('')
  expect(stdout).not.toContain('\x1b')
  const long = stdout.split('\n').filter((line) => line.length > 80 && !line.includes(stranger.temporary))
  expect(long).toEqual([])
  const road = [
    String.raw`^\$ bin/qworker -c '${stranger.temporary}/qworker-demo-\w+/qworkerrc'$`,
    String.raw`${TIME}the broker listens on 127\.0\.0\.1:\d+$`,
    String.raw`${TIME}the worker takes 2 jobs at a time; results at http://127\.0\.0\.1:\d+/$`,
    String.raw`^\$ bin/qproducer -c '.*' -a drunken_sailor -p '\{"seed": 40\}' --ttr 1 --wait$`,
    `${TIME}${SHORT}  drunken_sailor  put into the queue$`,
    `${TIME}${SHORT}  drunken_sailor  attempt 1 of 5 begins$`,
    String.raw`${TIME}${SHORT}  drunken_sailor  time is up \(TTR \+ GRACE_TIME\): it is ended$`,
    `${TIME}${SHORT}  drunken_sailor  attempt 1 ended by SIGTERM after .* s$`,
    `${TIME}${SHORT}  drunken_sailor  back in the queue, tried again in 1 s$`,
    `${TIME}${SHORT}  drunken_sailor  attempt 2 of 5 begins$`,
  ]
  expectInOrder(stdout, road)
  expectInOrder(stdout, [
    `${TIME}${SHORT}  forecast        put into the queue$`,
    `${TIME}${SHORT}  forecast        attempt 1 of 5 begins$`,
    `${TIME}${SHORT}  forecast        attempt 1 succeeded after .* s$`,
    `${TIME}${SHORT}  forecast        published, with 2 files$`,
    `${TIME}${SHORT}  forecast        complete$`,
    '^Atmospheric CO₂ at Mauna Loa: the next 24 months$',
    '^ppm$',
    '^420 ┤.*[⠁-⣿]',
    '└─.*┴',
    ' 2014 .* 2022',
    '^  series  741 values, 1958-03 to 2020-04$',
    String.raw`^  next    \d+\.\d ppm \(95 %: \d+\.\d to \d+\.\d\) in 2020-05$`,
    String.raw`^  curl http://localhost:\d+/[0-9a-f]{32}$`,
    String.raw`^  http://localhost:\d+/[0-9a-f]{32}/plot\.svg$`,
    `${TIME}nothing is left: .* is removed$`,
  ])
  await expectNothingLeft(stranger, stdout)
})

function expectInOrder(text: string, patterns: readonly string[]): void {
  const lines = text.split('\n')
  let from = 0
  for (const pattern of patterns) {
    const at = lines.findIndex((line, i) => i >= from && new RegExp(pattern).test(line))
    expect(at, `${pattern} in\n${lines.slice(from).join('\n')}`).toBeGreaterThanOrEqual(0)
    from = at + 1
  }
}

test('while it serves, result and plot are there, and jobs put with the command that it names are run and shown', async () => {
  const stranger = makeStranger()
  const demo = startDemo(stranger, ['--serve'])
  await demo.hears('Serving until Ctrl-C.')
  const [, url = ''] = /^ {2}curl (\S+)$/m.exec(demo.said.stdout) ?? []
  const answer = await fetch(url)
  expect(answer.status).toBe(200)
  expect(await answer.json()).toMatchObject({ type: 'forecast', timestamp: expect.stringMatching(/Z$/) })
  expect(await (await fetch(`${url}/plot.svg`)).text()).toContain('<svg')
  const [, command = ''] = /^ {2}(bin\/qproducer .*)$/m.exec(demo.said.stdout) ?? []
  const own = spawnSync('/bin/sh', ['-c', command], { cwd: PROJECT, env: stranger.env, encoding: 'utf8' })
  expect(own.status, own.stderr).toBe(0)
  expect(JSON.parse(own.stdout)).toMatchObject({ type: 'forecast' })
  const short = /"uuid":"(.{8})/.exec(own.stdout)?.[1]
  await demo.hears(new RegExp(`${TIME}${short}  forecast        complete$`, 'm'))
  demo.child.kill('SIGINT')
  expect(await demo.ended).toBe(0)
  expect(demo.said.stderr).toBe('')
  await expectNothingLeft(stranger, demo.said.stdout)
})

/** Moments of a demo, by what it has said. */
const MOMENTS: [signal: NodeJS.Signals, times: number, moment: string, said: RegExp, exitCode: number][] = [
  ['SIGINT', 1, 'before anything is there', /^qworker at work/, 130],
  ['SIGTERM', 2, 'while the worker starts', /^\$ bin\/qworker/m, 143],
  ['SIGINT', 2, 'when the broker is there', /the broker listens/, 130],
  ['SIGHUP', 1, 'while jobs are put', /^\$ bin\/qproducer/m, 129],
  ['SIGINT', 2, 'while the sailor is in its endless loop', /drunken_sailor {2}attempt 1 of 5 begins/, 130],
  ['SIGTERM', 1, 'between two attempts', /back in the queue/, 143],
]

for (const [signal, times, moment, said, exitCode] of MOMENTS) {
  test(`${signal}${times > 1 ? ' twice' : ''} ${moment}: it ends in order with ${exitCode}, and nothing is left`, async () => {
    const stranger = makeStranger()
    const demo = startDemo(stranger)
    await demo.hears(said)
    for (let i = 0; i < times; i++) demo.child.kill(signal)
    expect(await demo.ended).toBe(exitCode)
    expect(demo.said.stderr).toBe('')
    await expectNothingLeft(stranger, demo.said.stdout)
  })
}

test('a demo that is killed takes its programs and its folder along', async () => {
  const stranger = makeStranger()
  const demo = startDemo(stranger)
  await demo.hears('drunken_sailor  attempt 1 of 5 begins')
  demo.child.kill('SIGKILL')
  expect(await demo.ended).toBe('SIGKILL')
  await expectNothingLeft(stranger, demo.said.stdout)
})

for (const [who, pattern] of [
  ['worker', /^\S+ \S+\/bin\/qworker /],
  ['minder of the worker', /^\S+ \S+\/minder\.js .*\/bin\/qworker /],
] as const) {
  test(`when the ${who} is killed the demo says so and ends; what ran is ended too`, async () => {
    const stranger = makeStranger()
    const demo = startDemo(stranger)
    await demo.hears('drunken_sailor  attempt 1 of 5 begins')
    const victim = findProcesses(stranger.temporary).find(({ command }) => pattern.test(command))
    expect(victim).toBeDefined()
    process.kill(victim?.pid as number, 'SIGKILL')
    expect(await demo.ended).toBe(69)
    expect(demo.said.stderr).toBe('demo: the worker was ended by signal 9, and the demo with it; run it again\n')
    await expectNothingLeft(stranger, demo.said.stdout)
  })
}

test('a reader of its output that leaves ends the demo, without complaint', async () => {
  const stranger = makeStranger()
  const demo = startDemo(stranger, ['--serve'])
  await demo.hears('qworker at work')
  demo.child.stdout?.destroy()
  expect(await demo.ended).toBe(0)
  expect(demo.said.stderr).toBe('')
  await expectNothingLeft(stranger, demo.said.stdout)
})

test("a worker that cannot start is told of in the worker's own words, with its exit code and the next step", async () => {
  const stranger = makeStranger()
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  const { port } = server.address() as { port: number }
  const demo = startDemo(stranger, ['--http-port', String(port)])
  expect(await demo.ended).toBe(69)
  expect(demo.said.stderr).toMatch(/^demo: the worker ended with exit code 69\. It said:\n {2}qworker: HTTP_PORT: /)
  expect(demo.said.stderr).toMatch(/\n {2}give another --http-port, or leave it out: a free one is found\n$/)
  server.close()
  await expectNothingLeft(stranger, demo.said.stdout)
})

test('without a temporary folder it says what to set', async () => {
  const stranger = makeStranger()
  const TMPDIR = join(stranger.temporary, 'not there')
  const demo = startDemo({ ...stranger, env: { ...stranger.env, TMPDIR } })
  expect(await demo.ended).toBe(73)
  expect(demo.said.stderr).toMatch(/^demo: no temporary folder can be made: ENOENT.*\n {2}set TMPDIR to a folder/)
  await expectNothingLeft(stranger, demo.said.stdout)
})

test('a wrong command line is told, with 64', async () => {
  for (const [args, complaint] of [
    [['--color', 'pink'], /Allowed choices are auto, always, never/],
    [['--http-port', '70000'], /Expected a port, 1 to 65535/],
    [['--color', '--exit', '--serve'], /--exit and --serve do not go together/],
    [['more'], /too many arguments/],
  ] as const) {
    const { status, stderr } = spawnSync(process.execPath, [DEMO, ...args], { encoding: 'utf8' })
    expect([status, stderr]).toEqual([64, expect.stringMatching(complaint)])
  }
})

/** @returns the words that start a demo in a terminal of its own */
function inTerminal(columns: number, ...args: string[]): string[] {
  const quoted = [process.execPath, DEMO, ...args].map((word) => `'${word}'`).join(' ')
  return ['script', '-qec', `stty cols ${columns} rows 40; exec ${quoted}`, '/dev/null']
}

const hasScript = /util-linux/.test(spawnSync('script', ['--version'], { encoding: 'utf8' }).stdout ?? '')

test('on a terminal it has colours, keeps to its width, and serves until Ctrl-C', async (context) => {
  if (!hasScript) leaveOut(context, 'the demo on a terminal: there is no script (util-linux) here')
  const stranger = makeStranger()
  const terminal = { ...stranger, env: { ...stranger.env, PATH: process.env.PATH ?? '', TERM: 'xterm' } }
  const demo = startDemo(terminal, [], inTerminal(48))
  await demo.hears('Serving until Ctrl-C.')
  demo.child.stdin?.write('\x03')
  expect(await demo.ended).toBe(0)
  const { stdout } = demo.said
  expect(stdout).toContain('\x1b[32mcomplete\x1b[39m')
  const lines = stripVTControlCharacters(stdout).split(/\r?\n/)
  // Commands and addresses are for copying: they stay whole.
  const long = lines.filter((line) => line.length > 48 && !/https?:|bin\/q/.test(line))
  expect(long.filter((line) => !line.includes(stranger.temporary) && !line.includes(PROJECT))).toEqual([])
  await expectNothingLeft(stranger, stripVTControlCharacters(stdout))
})

test('on a terminal --exit ends it at once, and NO_COLOR keeps it plain', async (context) => {
  if (!hasScript) leaveOut(context, 'the demo on a terminal: there is no script (util-linux) here')
  const stranger = makeStranger()
  const env = { ...stranger.env, PATH: process.env.PATH ?? '', TERM: 'xterm', NO_COLOR: '1', LANG: 'C' }
  const demo = startDemo({ ...stranger, env }, [], inTerminal(80, '--exit'))
  expect(await demo.ended).toBe(0)
  expect(demo.said.stdout).not.toContain('\x1b')
  // A locale without UTF-8 gets ASCII.
  expect(demo.said.stdout).toMatch(/^[\x00-\x7f]*$/)
  expect(demo.said.stdout).toMatch(/^420 \+.*[*o:]/m)
  await expectNothingLeft(stranger, demo.said.stdout)
})
