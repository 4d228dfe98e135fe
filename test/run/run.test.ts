import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { type RunEnd, runAlgorithm } from '../../src/run/run.ts'
import {
  closeLaunchers,
  findLeftovers,
  findSleepers,
  makeRequest,
  openDescriptors,
  openGround,
  runScript,
  until,
} from './ground.ts'

const INTERRUPTED: RunEnd = { kind: 'interrupted' }

function sentSignals(report: { kill: { signals: readonly { signal: string }[] } | undefined }): string[] | undefined {
  return report.kill?.signals.map(({ signal }) => signal)
}

test('exit 0 with one JSON value on stdout is a success; the value is kept to the last digit', async () => {
  const json = '{"big": 12345678901234567890123, "small": 0.1000000000000000055, "e": 1e400}'
  const report = await runScript(openGround(), `echo '${json}'; echo note >&2`)
  expect(report).toMatchObject({
    outcome: { kind: 'success', exitCode: 0 },
    exitCode: 0,
    signal: undefined,
    kill: undefined,
    stderrTail: 'note\n',
    skipped: [],
    outputs: [],
  })
  expect(report.resultJson?.trim()).toBe(json)
  expect(report.ended.getTime()).toBeGreaterThanOrEqual(report.started.getTime())
})

test.each([
  ['auto', '{"a": 1}', '{"a": 1}'],
  ['auto', 'plain words', '"plain words"'],
  ['auto', '', 'null'],
  ['auto', '{"a": 1} {"b": 2}', '"{\\"a\\": 1} {\\"b\\": 2}"'],
  ['auto', '\\377\\376', 'null'],
  ['text', '{"a": 1}', '"{\\"a\\": 1}"'],
  ['text', '', '""'],
  ['json', ' [1, 2] ', ' [1, 2] '],
] as const)('output %s makes of %j the result %s', async (output, printed, expected) => {
  const report = await runScript(openGround(), `printf '${printed}'`, { manifest: { output } })
  expect(report.outcome).toEqual({ kind: 'success', exitCode: 0 })
  expect(report.resultJson).toBe(expected)
})

test.each([
  ['json', '{"half": ', 'stdout (9 bytes) is not one JSON value'],
  ['json', '', 'stdout is empty, expected one JSON value'],
  ['json', '\\377', 'stdout (1 bytes) is not UTF-8 text, expected one JSON value'],
  ['text', '\\377', 'stdout is not UTF-8 text'],
] as const)('output %s refuses %j', async (output, printed, detail) => {
  const report = await runScript(openGround(), `printf '${printed}'`, { manifest: { output } })
  expect(report).toMatchObject({ outcome: { kind: 'output_invalid', detail }, exitCode: 0, resultJson: undefined })
})

test('a result that is too large belongs in a file: json refuses it, auto leaves it in stdout.log', async () => {
  const script = 'printf \'"\'; head -c 17000000 /dev/zero | tr "\\0" x; printf \'"\''
  const wide = { maxOutputBytes: 20_000_000 }
  const [json, auto] = await Promise.all([
    runScript(openGround(), script, { ...wide, manifest: { output: 'json' } }),
    runScript(openGround(), script, wide),
  ])
  expect(json.outcome).toMatchObject({ kind: 'output_invalid', detail: expect.stringContaining('17000002 bytes') })
  expect(auto).toMatchObject({ outcome: { kind: 'success' }, resultJson: 'null' })
})

test.each([
  [65, { kind: 'rejected', exitCode: 65 }],
  [75, { kind: 'deferred', exitCode: 75 }],
  [78, { kind: 'rejected', exitCode: 78 }],
  [1, { kind: 'failed', exitCode: 1 }],
  [127, { kind: 'failed', exitCode: 127 }],
  [255, { kind: 'failed', exitCode: 255 }],
])('exit %i', async (code, outcome) => {
  const report = await runScript(openGround(), `echo 1; echo why >&2; exit ${code}`, {
    manifest: { permanentExits: [78] },
  })
  expect(report).toMatchObject({ outcome, exitCode: code, resultJson: undefined, stderrTail: 'why\n' })
})

test('death by a signal that was not ours', async () => {
  const report = await runScript(openGround(), 'kill -SEGV $$')
  expect(report).toMatchObject({ outcome: { kind: 'signalled', signal: 'SIGSEGV' }, exitCode: null, signal: 'SIGSEGV' })
})

test('at its limit a run is ended whole: SIGTERM, a second later SIGKILL, and nothing survives', async () => {
  const ground = openGround()
  const endings: unknown[] = []
  const report = await runScript(ground, 'trap "" TERM; setsid sleep $NAP & (sleep $NAP &) ; sleep $NAP; sleep $NAP', {
    limitSeconds: 1.5,
    onEnding: (pid, why) => endings.push([pid, why, findSleepers(ground).length]),
  })
  expect(report.outcome).toEqual({ kind: 'timed_out', limitSeconds: 1.5 })
  expect(endings).toEqual([[report.pid, 'timed_out', 3]])
  expect(sentSignals(report)).toEqual(['SIGTERM', 'SIGKILL'])
  const [term, kill] = report.kill?.signals ?? []
  expect((kill?.at_ms as number) - (term?.at_ms as number)).toBeGreaterThanOrEqual(900)
  expect(kill?.at_ms).toBeLessThan(1900)
  expect(report.kill?.survivors).toEqual([])
  expect(findLeftovers(ground)).toEqual([])
  expect(report).toMatchObject({ exitCode: null, signal: 'SIGKILL', resultJson: undefined })
  expect(report.durationSeconds).toBeGreaterThanOrEqual(2.4)
})

test('who ends well upon SIGTERM gets no SIGKILL, and is out of time all the same', async () => {
  const report = await runScript(openGround(), 'trap "echo bye; exit 0" TERM; sleep $NAP & wait', { limitSeconds: 1 })
  expect(report.outcome.kind).toBe('timed_out')
  expect(report.exitCode).toBe(0)
  expect(sentSignals(report)).toEqual(['SIGTERM'])
  expect(readFileSync(report.workdir.stdout, 'utf8')).toBe('bye\n')
})

test('a run that ended in time is not late because the worker was busy past its limit', async () => {
  const report = await runScript(openGround(), 'echo 1', {
    limitSeconds: 0.5,
    onStarted: () => {
      const end = performance.now() + 1500
      while (performance.now() < end);
    },
  })
  expect(report).toMatchObject({ outcome: { kind: 'success' }, kill: undefined })
})

test('a limit of 35 days is not taken for one of a millisecond', async () => {
  const report = await runScript(openGround(), 'sleep 0.2; echo 1', { limitSeconds: 35 * 86_400 })
  expect(report.outcome).toEqual({ kind: 'success', exitCode: 0 })
})

test('the environment is what the contract names, and nothing of the worker', async () => {
  process.env.SECRET_TOKEN = 'of the worker'
  try {
    const ground = openGround()
    const report = await runScript(ground, 'env -0 >env.bin', {
      manifest: { env: { MODEL: 'ets', LANG: 'de_DE.UTF-8' } },
      attempt: 2,
      ttrSeconds: 30,
      limitSeconds: 40,
      environment: { PATH: '/usr/bin:/bin', LANG: 'C', TZ: 'UTC' },
    })
    const lines = readFileSync(join(report.workdir.scratch, 'env.bin'), 'utf8').split('\0').filter(Boolean)
    const env = Object.fromEntries(lines.map((line) => line.split(/=(.*)/s, 2)))
    // PWD, and _ in some, are the shell's own.
    const { PWD: _, _: __, OLDPWD: ___, SHLVL: ____, QWORKER_RUN, QWORKER_DEADLINE, ...rest } = env
    expect(rest).toEqual({
      PATH: '/usr/bin:/bin',
      LANG: 'de_DE.UTF-8',
      TZ: 'UTC',
      MODEL: 'ets',
      HOME: report.workdir.scratch,
      TMPDIR: report.workdir.scratch,
      QWORKER_UUID: ground.uuid,
      QWORKER_TYPE: 'test',
      QWORKER_ATTEMPT: '2',
      QWORKER_MAX_ATTEMPTS: '5',
      QWORKER_TUBE: 'default',
      QWORKER_PRIORITY: '1337',
      QWORKER_TTR: '30',
    })
    expect(QWORKER_RUN).toMatch(new RegExp(`^w1-test\\.${ground.uuid}\\.2\\.[0-9a-f]{16}$`))
    expect(Date.parse(QWORKER_DEADLINE) - report.started.getTime()).toBe(40_000)
  } finally {
    delete process.env.SECRET_TOKEN
  }
})

test('the directory is fresh, the payload is on stdin and in input.json, no descriptor of the worker is open', async () => {
  const script = 'pwd -P; ls -A; cat; echo; cat input.json; echo; ls /proc/self/fd'
  const payloadJson = '{"n": 12345678901234567890, "s": "ü\\u0000"}'
  const report = await runScript(openGround(), script, { payloadJson, manifest: { output: 'text' } })
  const lines = JSON.parse(report.resultJson as string).split('\n')
  expect(lines.slice(1, 4)).toEqual(['input.json', payloadJson, payloadJson])
  // Who started the tests may have left open descriptors to every child: Node's spawn cannot close those.
  const anyChild = spawnSync('ls', ['/proc/self/fd'], { encoding: 'utf8' }).stdout.split('\n')
  expect(lines.slice(4)).toEqual(anyChild)
  expect(lines[0]).toMatch(/\/scratch$/)
  expect(report.outputs).toEqual([])
})

test('placeholders of the command are replaced, once', async () => {
  const ground = openGround()
  const command = ['/bin/echo', '{uuid}/{attempt}/{ttr}/{dir}/{node}/{other}{{ttr}}']
  const report = await runScript(ground, '', { manifest: { command }, ttrSeconds: 9 })
  const expected = `${ground.uuid}/1/9/${ground.dir}/${process.execPath}/{other}{9}\n`
  expect(JSON.parse(report.resultJson as string)).toBe(expected)
})

test('a large input that nobody reads does no harm', async () => {
  const payloadJson = JSON.stringify('x'.repeat(1_000_000))
  const report = await runScript(openGround(), 'exec <&-; echo 1', { payloadJson })
  expect(report).toMatchObject({ outcome: { kind: 'success' }, resultJson: '1\n' })
})

test('several processes that write to one stream do not overwrite each other', async () => {
  const script = 'for i in 1 2 3 4; do sh -c "for j in 1 2 3 4 5 6 7 8 9 10; do echo $i; done" & done; wait'
  const report = await runScript(openGround(), script, { manifest: { output: 'text' } })
  expect(JSON.parse(report.resultJson as string)).toHaveLength(80)
})

test.each(['stdout', 'stderr'])('a flood on %s is ended, and its log cut to what is allowed', async (stream) => {
  const script = stream === 'stdout' ? 'exec yes' : 'exec yes >&2'
  const report = await runScript(openGround(), script, { maxOutputBytes: 1_000_000 })
  expect(report.outcome).toEqual({
    kind: 'output_exceeded',
    detail: `${stream} grew beyond 1000000 bytes (MAX_OUTPUT)`,
  })
  expect(sentSignals(report)).toEqual(['SIGTERM'])
  expect(readFileSync(stream === 'stdout' ? report.workdir.stdout : report.workdir.stderr)).toHaveLength(1_000_000)
})

test('a flood that is over before we look is told too', async () => {
  const report = await runScript(openGround(), 'head -c 20000 /dev/zero', { maxOutputBytes: 10_000 })
  expect(report).toMatchObject({ outcome: { kind: 'output_exceeded' }, exitCode: 0, kill: undefined })
})

test('a scratch directory that grows too large ends the run; a sparse file counts for what it takes', async () => {
  const script = 'truncate -s 10G sparse; mkdir -p a/b; head -c 3000000 /dev/zero >a/b/c; sync a/b/c'
  const rest = { maxScratchBytes: 1_000_000 }
  const [running, over, sparse] = await Promise.all([
    runScript(openGround(), `${script}; sleep $NAP & wait`, rest),
    runScript(openGround(), script, rest),
    runScript(openGround(), 'truncate -s 10G .sparse', rest),
  ])
  const outcome = { kind: 'output_exceeded', detail: 'the scratch directory grew beyond 1000000 bytes (MAX_SCRATCH)' }
  expect(running).toMatchObject({ outcome, kill: { survivors: [] } })
  expect(over).toMatchObject({ outcome, kill: undefined, exitCode: 0 })
  expect(sparse.outcome.kind).toBe('success')
})

test('a child that holds stdout after exit 0 is ended; nobody waits for it', async () => {
  const ground = openGround()
  const report = await runScript(ground, 'sleep $NAP & echo 1')
  expect(report).toMatchObject({ outcome: { kind: 'success' }, resultJson: '1\n', kill: { survivors: [] } })
  expect(sentSignals(report)).toEqual(['SIGKILL'])
  expect(findSleepers(ground)).toEqual([])
})

test.each([
  ['a program that vanished', './gone', /^algorithm test: its program .*\/gone is not there$/],
  ['a bare name that is not in PATH', 'no-such-program-here', /"no-such-program-here" is not in PATH .*install it/],
  ['a folder', '{dir}', /is no file$/],
  ['a file without the right to execute', './plain', /is not executable; allow it with: chmod \+x .*plain$/],
  ['an interpreter that is missing', './orphan', /\/orphan cannot be started: \/no\/such\/perl, .* is not there$/],
  ['Windows line ends', './windows', /its first line, #!\/bin\/sh, ends with a carriage return; save it with Unix/],
])('%s: not started, and the words say why', async (_, program, words) => {
  const ground = openGround()
  const write = (name: string, text: string, mode: number) => writeFileSync(join(ground.dir, name), text, { mode })
  write('plain', '#!/bin/sh\n', 0o644)
  write('orphan', '#!/no/such/perl -w\n', 0o755)
  write('windows', '#!/bin/sh\r\necho 1\r\n', 0o755)
  const before = openDescriptors()
  const report = await runScript(ground, '', { manifest: { command: [program, 'x'] } })
  expect(report).toMatchObject({ outcome: { kind: 'not_started' }, exitCode: null, pid: undefined, kill: undefined })
  expect('detail' in report.outcome && report.outcome.detail).toMatch(words)
  closeLaunchers()
  await until('no descriptor is kept', () => openDescriptors() === before)
  // Whoever publishes the attempt publishes its streams.
  expect(readFileSync(report.workdir.stdout, 'utf8') + readFileSync(report.workdir.stderr, 'utf8')).toBe('')
})

test.each<RunEnd>([INTERRUPTED, { kind: 'lost', detail: 'the reservation is gone' }])(
  'an abort ends the run with its reason: $kind',
  async (reason) => {
    const ground = openGround()
    const abort = new AbortController()
    const endings: unknown[] = []
    const running = runScript(ground, 'sleep $NAP & wait', {
      signal: abort.signal,
      onEnding: (_, why) => endings.push(why),
    })
    await until('the sleeper', () => findSleepers(ground).length === 1)
    abort.abort(reason)
    const report = await running
    expect(report).toMatchObject({ outcome: reason, signal: 'SIGTERM', kill: { survivors: [] } })
    expect(endings).toEqual([reason.kind])
  },
)

test('an abort before the start starts nothing', async () => {
  const ground = openGround()
  const calls: unknown[] = []
  const report = await runScript(ground, 'touch began', {
    signal: AbortSignal.abort(INTERRUPTED),
    onStarted: () => calls.push('started'),
    onEnding: () => calls.push('ending'),
  })
  expect(report).toMatchObject({ outcome: INTERRUPTED, pid: undefined, kill: undefined })
  expect(calls).toEqual([])
  expect(readdirSync(report.workdir.scratch)).toEqual(['input.json'])
})

test.each([0, 1, 2, 3, 4, 5, 8, 12])('an abort %i turns of the loop after the call ends all', async (turns) => {
  const ground = openGround()
  const abort = new AbortController()
  const running = runScript(ground, 'sleep $NAP & wait', { signal: abort.signal })
  for (let i = 0; i < turns; i++) await new Promise(setImmediate)
  abort.abort(INTERRUPTED)
  expect(await running).toMatchObject({ outcome: INTERRUPTED })
  expect(findLeftovers(ground)).toEqual([])
})

test('an abort from within onStarted is heard', async () => {
  const abort = new AbortController()
  const report = await runScript(openGround(), 'exec sleep $NAP', {
    signal: abort.signal,
    onStarted: () => abort.abort(INTERRUPTED),
  })
  expect(report.outcome).toEqual(INTERRUPTED)
})

test('programs that exit at once, many at a time: every exit is told, no descriptor is kept', async () => {
  const before = openDescriptors()
  const reports = await Promise.all(
    Array.from({ length: 60 }, (_, i) => runScript(openGround(), `exit ${i}`, { manifest: { permanentExits: [] } })),
  )
  expect(reports.map(({ exitCode }) => exitCode)).toEqual(Array.from({ length: 60 }, (_, i) => i))
  closeLaunchers()
  await until('no descriptor is kept', () => openDescriptors() === before)
})

test('two runs of one job at once: ending one leaves the other alone', async () => {
  const ground = openGround()
  const abort = new AbortController()
  const first = runScript(ground, 'setsid sleep $NAP & wait', { signal: abort.signal })
  const other = new AbortController()
  const request = await makeRequest(ground, {
    manifest: { command: ['/bin/sh', '-c', 'setsid sleep $NAP & wait'] },
    signal: other.signal,
  })
  const second = runAlgorithm(request)
  await until('both sleepers', () => findSleepers(ground).length === 2)
  abort.abort(INTERRUPTED)
  await first
  expect(findSleepers(ground)).toHaveLength(1)
  other.abort(INTERRUPTED)
  expect((await second).kill?.survivors).toEqual([])
})

test('a run below a directory that is a link is found in /proc all the same', async () => {
  const ground = openGround()
  symlinkSync(ground.dir, join(ground.dir, 'link'))
  const report = await runScript({ ...ground, dir: join(ground.dir, 'link') }, '(env -i setsid sleep $NAP &)')
  expect(sentSignals(report)).toEqual(['SIGKILL'])
  expect(findSleepers(ground)).toEqual([])
})

test('megabytes of brackets on stdout are no result, and hold nobody up', async () => {
  const brackets = `head -c 2000000 /dev/zero | tr "\\0" "[";  head -c 2000000 /dev/zero | tr "\\0" "]"`
  const ground = openGround()
  const report = await runScript(ground, brackets, { manifest: { output: 'json' }, maxOutputBytes: 2 ** 23 })
  expect(report.outcome).toMatchObject({
    kind: 'output_invalid',
    detail: expect.stringMatching(/deeper than 1000 levels/),
  })
})
