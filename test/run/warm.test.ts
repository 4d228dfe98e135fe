import { existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { findRestraint } from '../../src/run/limits.ts'
import type { RunReport } from '../../src/run/run.ts'
import {
  findLeftovers,
  findSleepers,
  kill,
  listPids,
  openDescriptors,
  openGround,
  PATH,
  readProc,
  until,
} from './ground.ts'
import { byShell, makeWarm, newUuid, openWarm, SAILOR } from './warm.ts'

const pidOf = (report: RunReport): number => {
  expect(report.outcome).toEqual({ kind: 'success', exitCode: 0 })
  return (JSON.parse(report.resultJson ?? '') as { pid: number }).pid
}
const PID = 'answer "{\\"pid\\":$$}"'

test('one process serves job after job; each has a directory of its own, and what it leaves there is published', async () => {
  const slot = openWarm(openGround(), byShell(`echo "$dir" >"$dir/where.txt"; ${PID}`))
  const places: string[] = []
  const pids = new Set<number>()
  for (let i = 0; i < 3; i++) {
    const report = await slot.run(undefined, {
      look: ({ outputs: [output] }) => places.push(readFileSync(output?.path ?? '', 'utf8')),
    })
    expect(report).toMatchObject({ exitCode: 0, kill: undefined, skipped: [], outputs: [{ name: 'where.txt' }] })
    expect(report.logs).toEqual([])
    expect(report.usage).toMatchObject({ method: 'sampled', cpu_seconds: expect.any(Number) })
    expect(report.usage?.peak_memory_bytes).toBeGreaterThan(100_000)
    pids.add(pidOf(report))
    expect(report.pid).toBe([...pids][0])
  }
  expect(pids.size).toBe(1)
  expect(new Set(places).size).toBe(3)
  for (const place of places) expect(existsSync(place.trim())).toBe(false)
})

test('the line tells of the job all that the environment of other algorithms does, and the payload to the last digit', async () => {
  const ground = openGround()
  const slot = openWarm(ground, byShell('answer "$line"'))
  const uuid = newUuid()
  const payloadJson = '{"n":12345678901234567890,\n"e":1e400,"s":"\u2028"}'
  const about = { uuid, attempt: 2, maxAttempts: 3, tube: 'deep', priority: 7, ttrSeconds: 30, limitSeconds: 40 }
  const report = await slot.run(undefined, { ...about, payloadJson })
  expect(report.resultJson).toContain('{"n":12345678901234567890, "e":1e400,')
  const job = JSON.parse(report.resultJson ?? '') as Record<string, string>
  expect(job).toEqual({
    ...{ uuid, type: 'test', attempt: 2, max_attempts: 3, tube: 'deep', priority: 7, ttr: 30 },
    deadline: new Date(report.started.getTime() + 40_000).toISOString(),
    workdir: expect.stringMatching(`^${slot.workshop}/`),
    payload: JSON.parse(payloadJson),
  })
})

test('a process has the small environment, a directory of its own and the settings, and nothing of a job', async () => {
  const ground = openGround()
  const slot = openWarm(ground, {
    ...byShell(
      'cat .settings.json >"$dir/settings"; env -0 >"$dir/env"; pwd >"$dir/pwd"; ls /proc/self/fd >"$dir/fds"; answer 1',
    ),
    env: { MODEL: 'ets' },
  })
  let read: Record<string, string> = {}
  await slot.run(undefined, {
    settings: { SMTP_HOST: 'mail' },
    look: ({ outputs }) => {
      read = Object.fromEntries(outputs.map(({ name, path }) => [name, readFileSync(path, 'utf8')]))
    },
  })
  expect(read.settings).toBe('{"SMTP_HOST":"mail"}')
  const env = Object.fromEntries(
    (read.env ?? '')
      .split('\0')
      .filter(Boolean)
      .map((line) => line.split(/=(.*)/s, 2)),
  )
  const { PWD: _pwd, OLDPWD: _old, SHLVL: _level, _: _last, ...rest } = env
  expect(Object.keys(rest).sort()).toEqual(
    ['HOME', 'LANG', 'MODEL', 'NAP', 'PATH', 'QWORKER_RUN', 'QWORKER_TYPE', 'TMPDIR'].sort(),
  )
  expect(env.QWORKER_RUN).toMatch(new RegExp(`^w1-${ground.uuid}\\.warm\\.test\\.[0-9a-f]{16}$`))
  expect(read.pwd?.trim()).toBe(env.HOME)
  // 3 is what ls itself opens; who started the tests may have left some that are higher.
  expect(
    read.fds
      ?.trim()
      .split('\n')
      .filter((fd) => Number(fd) < 20),
  ).toEqual(['0', '1', '2', '3'])
})

test('an error is an answer: it is retried, or not, and the process goes on', async () => {
  const slot = openWarm(openGround(), SAILOR)
  const first = pidOf(await slot.run())
  const faulty = await slot.run({ outcome: 'faulty' })
  expect(faulty).toMatchObject({
    outcome: { kind: 'failed', exitCode: null, error: 'Drunken Sailor: Faulty execution.' },
    ...{ exitCode: null, kill: undefined, pid: first, resultJson: undefined },
  })
  const bad = await slot.run({ outcome: 'bad-input' })
  expect(bad.outcome).toEqual({ kind: 'rejected', exitCode: null, error: 'the input is bad' })
  expect(pidOf(await slot.run())).toBe(first)
})

test('stderr is cut for each job: what was written since the last one is its log', async () => {
  const slot = openWarm(openGround(), byShell(`case $line in *loud*) echo "about $uuid" >&2;; esac; ${PID}`))
  const uuids = [newUuid(), newUuid()]
  for (const uuid of uuids) {
    const report = await slot.run('loud', {
      uuid,
      look: (_, { stderr }) => expect(readFileSync(stderr, 'utf8')).toBe(`about ${uuid}\n`),
    })
    expect(report).toMatchObject({ stderrTail: `about ${uuid}\n`, logs: ['stderr.log'] })
    expect(await slot.run('quiet')).toMatchObject({ stderrTail: '', logs: [] })
  }
})

test('stderr beyond its bound ends the process, while the job goes on and at its end', async () => {
  const ground = openGround()
  const slot = openWarm(
    ground,
    byShell('head -c 300000 /dev/zero >&2; case $line in *endless*) sleep $NAP;; esac; answer 1'),
  )
  for (const payload of ['endless', 'short']) {
    const report = await slot.run(payload, {
      maxOutputBytes: 100_000,
      look: (_, { stderr }) => expect(readFileSync(stderr)).toHaveLength(100_000),
    })
    expect(report.outcome).toEqual({
      kind: 'output_exceeded',
      detail: 'stderr grew beyond 100000 bytes (MAX_OUTPUT)',
    })
    expect(report.kill?.survivors).toEqual([])
    expect(findSleepers(ground)).toEqual([])
  }
  expect(pidOf({ ...(await slot.run()), resultJson: '{"pid":1}' })).toBe(1)
})

test('after max_jobs jobs another process serves; the former one sees the end of its stdin', async () => {
  const ground = openGround()
  const { command = [] } = byShell(PID)
  const script = `${command[2]}\necho "$$" >>${ground.dir}/ended`
  const slot = openWarm(ground, { command: ['/bin/sh', '-c', script], warm: { maxJobs: 2 } })
  const pids: number[] = []
  for (let i = 0; i < 5; i++) pids.push(pidOf(await slot.run()))
  expect(new Set(pids).size).toBe(3)
  expect(pids[0]).toBe(pids[1])
  expect(pids[2]).toBe(pids[3])
  await slot.seats.close()
  const ended = readFileSync(join(ground.dir, 'ended'), 'utf8').trim().split('\n').map(Number)
  expect(ended.sort()).toEqual([...new Set(pids)].sort())
})

test.each([
  ['dies-in-the-middle', { kind: 'failed', exitCode: 10 }],
  [
    'answers-for-another',
    { kind: 'output_invalid', detail: expect.stringMatching(/answer to the job "0{32}"; expected/) },
  ],
  ['not-json', { kind: 'output_invalid', detail: expect.stringMatching(/"Way hay .*", which is no JSON object/) }],
  ['floods-stdout', { kind: 'output_invalid', detail: expect.stringMatching(/longer than a result may be/) }],
  ['stops-reading', { kind: 'timed_out', limitSeconds: 1 }],
  ['half-line', { kind: 'timed_out', limitSeconds: 1 }],
  ['answers-late', { kind: 'timed_out', limitSeconds: 1 }],
] as const)(
  '%s: the job is to blame, its process is gone, and the next one is served by another',
  async (outcome, expected) => {
    const ground = openGround()
    const slot = openWarm(ground, SAILOR)
    const first = pidOf(await slot.run())
    const limit = expected.kind === 'timed_out' ? { limitSeconds: 1 } : {}
    const report = await slot.run(
      { outcome },
      {
        ...limit,
        look: (_, { stdout }) => {
          if (outcome === 'not-json') expect(readFileSync(stdout, 'utf8')).toMatch(/^Way hay/)
        },
      },
    )
    expect(report.outcome).toEqual(expected)
    expect(report).toMatchObject({ pid: first, resultJson: undefined })
    expect(report.kill?.survivors ?? []).toEqual([])
    if (expected.kind === 'timed_out') expect(report.kill?.signals[0]?.signal).toBe('SIGTERM')
    expect(report.logs.sort()).toEqual(['stderr.log', 'stdout.log'])
    expect(readProc(first, 'stat')).toBe('')
    expect(pidOf(await slot.run())).not.toBe(first)
  },
)

test.each(['answers-twice', 'dies-between-jobs', 'closes-stdin'] as const)(
  '%s: the job has its result, and nobody after it is blamed',
  async (outcome) => {
    const slot = openWarm(openGround(), SAILOR)
    const seen: number[] = []
    for (let i = 0; i < 10; i++) {
      seen.push(pidOf(await slot.run({ outcome })))
      if (i % 2 === 0) await sleep(i)
    }
    expect(new Set(seen).size).toBe(10)
  },
)

test('who exits with 0 and gives no answer, or closes its stdout, has failed', async () => {
  const slot = openWarm(openGround(), byShell('case $line in *closes*) exec >&-; sleep $NAP;; esac; exit 0'))
  const exited = await slot.run()
  expect(exited).toMatchObject({ outcome: { kind: 'output_invalid' }, exitCode: 0 })
  expect(exited.outcome).toMatchObject({ detail: expect.stringMatching(/ended with 0 and gave no answer/) })
  const closed = await slot.run('closes')
  expect(closed.outcome).toMatchObject({ detail: expect.stringMatching(/closed its stdin or stdout/) })
})

test('death by a signal, and the exit codes, are what they are for other algorithms', async () => {
  const slot = openWarm(openGround(), byShell('kill -SEGV $$'))
  expect((await slot.run()).outcome).toEqual({ kind: 'signalled', signal: 'SIGSEGV' })
  const code = '$(printf %s "$line" | tr -dc \'0-9\\n\' | tail -c 2)'
  const exits = openWarm(openGround(), { ...byShell(`exit ${code}`), permanentExits: [78] })
  expect((await exits.run(65)).outcome).toEqual({ kind: 'rejected', exitCode: 65 })
  expect((await exits.run(78)).outcome).toEqual({ kind: 'rejected', exitCode: 78 })
  expect((await exits.run(33)).outcome).toEqual({ kind: 'failed', exitCode: 33 })
})

test('a process that dies at its start fails the job, with what it said', async () => {
  const ground = openGround()
  const slot = openWarm(ground, { command: ['/bin/sh', '-c', 'echo "no model" >&2; exit 7'] })
  for (let i = 0; i < 2; i++)
    expect(await slot.run()).toMatchObject({ outcome: { kind: 'failed', exitCode: 7 }, stderrTail: 'no model\n' })
  const broken = join(ground.dir, 'broken')
  writeFileSync(broken, '#!/no/such/sh\n', { mode: 0o755 })
  const { outcome } = await slot.run({}, { algorithm: makeWarm(ground, { name: 'other', command: [broken] }) })
  expect(outcome).toMatchObject({ kind: 'not_started', detail: expect.stringMatching(/\/no\/such\/sh.* is not there/) })
  const gone = await slot.run({}, { algorithm: makeWarm(ground, { name: 'gone', command: ['/no/such/program'] }) })
  expect(gone).toMatchObject({ outcome: { kind: 'not_started' }, pid: undefined, usage: undefined })
})

test('an abort ends the process with all that it started; what it left from earlier jobs goes too', async () => {
  const ground = openGround()
  const slot = openWarm(ground, byShell('setsid sleep $NAP >&2 & case $line in *waits*) sleep $NAP;; esac; answer 1'))
  await slot.run()
  await until('the child of the first job', () => findSleepers(ground).length === 1)
  const abort = new AbortController()
  const endings: unknown[] = []
  const running = slot.run('waits', { signal: abort.signal, onEnding: (_, why) => endings.push(why) })
  await until('the second job', () => findSleepers(ground).length === 3)
  abort.abort({ kind: 'lost', detail: 'test' })
  const report = await running
  expect(report).toMatchObject({ outcome: { kind: 'lost' }, kill: { survivors: [] } })
  expect(endings).toEqual(['lost'])
  expect(findLeftovers(ground)).toEqual([])
})

test('a process that is killed while it waits is replaced, and the job does not notice', async () => {
  const slot = openWarm(openGround(), SAILOR)
  for (let i = 0; i < 5; i++) {
    const pid = pidOf(await slot.run())
    kill(pid)
    if (i % 2 === 0) await until('its end', () => readProc(pid, 'stat') === '')
    expect(pidOf(await slot.run())).not.toBe(pid)
  }
})

test('a payload of megabytes goes in, and a result of megabytes comes out', async () => {
  const slot = openWarm(openGround(), byShell('answer "\\"$(printf %s "$line" | tail -c 3000003 | tr -d \'"}\')\\""'))
  const report = await slot.run('x'.repeat(3_000_000))
  expect(report.outcome.kind).toBe('success')
  expect(report.resultJson?.length).toBe(3_000_002)
})

test('of five algorithms four have a process; the one used least recently has made room', async () => {
  const ground = openGround()
  const slot = openWarm(ground)
  const names = ['a', 'b', 'c', 'd', 'e']
  const algorithms = names.map((name) => makeWarm(ground, { name, ...byShell(PID) }))
  const pids: number[] = []
  for (const algorithm of algorithms) pids.push(pidOf(await slot.run({}, { algorithm })))
  await until('the first has ended', () => readProc(pids[0] as number, 'stat') === '')
  expect(pidOf(await slot.run({}, { algorithm: algorithms[1] }))).toBe(pids[1])
  expect(pidOf(await slot.run({}, { algorithm: algorithms[0] }))).not.toBe(pids[0])
  await until('the third has ended', () => readProc(pids[2] as number, 'stat') === '')
})

test('a new generation ends all processes at once, and another manifest of the same name gets a process of its own', async () => {
  const ground = openGround()
  const slot = openWarm(ground, byShell(PID))
  slot.seats.renew(0)
  const first = pidOf(await slot.run())
  slot.seats.renew(0)
  expect(pidOf(await slot.run())).toBe(first)
  slot.seats.renew(1)
  await until('its end', () => readProc(first, 'stat') === '')
  const second = pidOf(await slot.run())
  expect(pidOf(await slot.run({}, { algorithm: makeWarm(ground, byShell(PID)) }))).not.toBe(second)
})

test('who does not heed the end of its stdin, nor SIGTERM, is killed when the slot ends; no folder, descriptor or process is left', async () => {
  const ground = openGround()
  const before = openDescriptors()
  const { command = [] } = byShell(PID)
  const slot = openWarm(ground, {
    command: ['/bin/sh', '-c', `trap "" TERM; ${command[2]}\nsleep $NAP & sleep $NAP; sleep $NAP`],
  })
  await slot.run()
  await slot.seats.close()
  expect(findLeftovers(ground)).toEqual([])
  await until('the descriptors', () => openDescriptors() === before)
  expect(readdirSync(join(slot.workshop, '.warm/test'))).toEqual([])
})

test('no other process has a descriptor of a warm one, nor it one of another', async () => {
  const ground = openGround()
  const slot = openWarm(ground)
  const one = makeWarm(ground, { name: 'one', ...byShell(PID) })
  const two = makeWarm(ground, { name: 'two', ...byShell(PID) })
  const pids = [pidOf(await slot.run({}, { algorithm: one })), pidOf(await slot.run({}, { algorithm: two }))]
  const links = pids.map((pid) => readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`)))
  for (const each of links) expect(each.filter((link) => link.startsWith('socket:'))).toHaveLength(2)
  const [sockets, others] = links.map((each) => new Set(each.filter((link) => link.startsWith('socket:'))))
  expect([...(sockets ?? [])].filter((link) => others?.has(link))).toEqual([])
  expect(listPids().length).toBeGreaterThan(0)
})

test('files that a job wrote where it should not, and a directory that it removed, are no concern of the next one', async () => {
  const slot = openWarm(
    openGround(),
    byShell(
      'case $line in *removes*) rm -r "$dir";; *hides*) echo 1 >"$dir/.hidden"; mkdir "$dir/x";; esac; ls -A "$dir" >&2; answer 1',
    ),
  )
  for (const payload of ['removes', 'plain', 'hides', 'plain', 'plain']) {
    const report = await slot.run(payload)
    expect(report).toMatchObject({ outcome: { kind: 'success' }, outputs: [] })
    if (payload === 'plain') expect(report.stderrTail).toBe('')
  }
})

test('more files than may lie in the directory of the job, or in that of the process, end it', async () => {
  const slot = openWarm(
    openGround(),
    byShell(
      'head -c 300000 /dev/zero >"$dir/big"; head -c 300000 /dev/zero >big; case $line in *waits*) sleep $NAP;; esac; answer 1',
    ),
  )
  const short = await slot.run({}, { maxScratchBytes: 200_000 })
  expect(short.outcome).toMatchObject({ kind: 'output_exceeded', detail: expect.stringMatching(/scratch directory/) })
  const long = await slot.run('waits', { maxScratchBytes: 500_000 })
  expect(long.outcome).toMatchObject({ kind: 'output_exceeded' })
  expect(long.kill?.survivors).toEqual([])
})

test.each([
  ['writes to it between two jobs', '(until [ -e "$HOME/go" ]; do sleep 0.05; done; echo x >"$dir/late") & answer 1'],
  ['changes its rights', 'chmod 777 "$dir"; answer 1'],
  ['puts a link in its place', 'rmdir "$dir"; mkdir "$HOME/mine"; ln -s "$HOME/mine" "$dir"; answer 1'],
])('the next job has an empty directory of its own, when one %s', async (what, script) => {
  const second = 'echo "$(stat -c %a%F "$dir")$(ls "$dir")" >"$dir/mine"; answer 2'
  const slot = openWarm(openGround(), byShell(`case $n in '') n=1; ${script};; *) ${second};; esac`))
  expect((await slot.run()).resultJson).toBe('1')
  const seat = join(slot.workshop, '.warm', 'test', '1.1')
  if (what.startsWith('writes')) {
    writeFileSync(join(seat, 'process-1', 'home', 'go'), '')
    await until('it has written', () => existsSync(join(seat, 'job-1', 'late')))
  }
  let mine = ''
  const look = ({ outputs: [output] }: RunReport) => {
    mine = readFileSync(output?.path ?? '', 'utf8')
  }
  const report = await slot.run({}, { look })
  expect(report).toMatchObject({ resultJson: '2', outputs: [{ name: 'mine' }] })
  expect(mine).toBe('700directory\n')
})

test('a process may be allowed as few descriptors as a manifest can say', async () => {
  const limits = { openFiles: 8 }
  const restraint = await findRestraint(limits, PATH, undefined, [])
  if ('problem' in restraint) throw new Error(restraint.problem)
  const program =
    'import json,os\njob=json.loads(input())\nprint(json.dumps({"uuid":job["uuid"],"result":os.sysconf("SC_OPEN_MAX")}),flush=True)'
  const slot = openWarm(openGround(), { command: ['python3', '-c', program], limits, restraint })
  expect(await slot.run()).toMatchObject({ resultJson: '8' })
})
