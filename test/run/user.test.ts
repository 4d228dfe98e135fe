import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, linkSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeEach, expect, type TestContext, test } from 'vitest'
import { findAlgorithms } from '../../src/run/algorithm.ts'
import { runAlgorithm } from '../../src/run/run.ts'
import { type AlgorithmUser, findUser } from '../../src/run/user.ts'
import { createWorkdir, removeWorkdir } from '../../src/run/workdir.ts'
import { leaveOut } from '../support/installation.ts'
import { findLeftovers, type Ground, makeRequest, openGround, PATH, type RunOptions } from './ground.ts'
import { byShell, openWarm } from './warm.ts'

let ground: Ground
let nobody: AlgorithmUser
beforeEach(async (context: TestContext) => {
  ground = openGround()
  chmodSync(ground.dir, 0o755)
  const found = process.geteuid?.() === 0 ? await findUser('nobody') : undefined
  if (found === undefined || 'problem' in found) leaveOut(context, 'needs root and the user nobody')
  nobody = found
})

async function runAsNobody(script: string, options: RunOptions = {}) {
  const manifest = { command: ['/bin/sh', '-c', script], user: nobody, ...options.manifest }
  const request = await makeRequest(ground, { ...options, manifest })
  await removeWorkdir(request.workdir)
  const base = join(ground.dir, 'work')
  const workdir = await createWorkdir(base, 'nobodys', '{"n":1}', { SMTP_HOST: 'mail' }, nobody)
  return { ...(await runAlgorithm({ ...request, workdir })), workdir }
}

/** What a command does as another user. */
function asNobody(script: string): string {
  const rights = { uid: nobody.uid, gid: nobody.gid, cwd: '/', encoding: 'utf8' } as const
  return spawnSync('/bin/sh', ['-c', script], rights).stdout
}

test('the algorithm is that user in all: uid, gid, no other group, HOME, USER', async () => {
  const script =
    'id -u; id -g; id -G; echo $USER $LOGNAME; cd /; cd "$HOME" && pwd; cat input.json; cat "$HOME/.settings.json"'
  const report = await runAsNobody(script, { manifest: { output: 'text' } })
  const { uid, gid, name } = nobody
  const lines = [uid, gid, gid, `${name} ${name}`, report.workdir.scratch, '{"n":1}{"SMTP_HOST":"mail"}']
  expect(report.stderrTail).toBe('')
  expect(JSON.parse(report.resultJson as string)).toBe(lines.join('\n'))
})

test('streams can be opened anew by name, and what is published of them is ours', async () => {
  const report = await runAsNobody('echo 1 >/dev/stdout; echo why >/dev/stderr; cat /dev/stdin >/dev/null')
  expect(report).toMatchObject({ outcome: { kind: 'success' }, resultJson: '1\n', stderrTail: 'why\n' })
  for (const path of [report.workdir.stdout, report.workdir.stderr]) expect(statSync(path).uid).toBe(0)
})

test('outputs are copies of ours: a link that was kept elsewhere changes nothing', async () => {
  mkdirSync(join(ground.dir, 'kept'))
  chmodSync(join(ground.dir, 'kept'), 0o777)
  const report = await runAsNobody(`echo data >out.txt; ln out.txt ${ground.dir}/kept/link; chmod 600 out.txt`)
  const [output] = report.outputs
  expect(output).toMatchObject({ name: 'out.txt', bytes: 5 })
  const path = output?.path as string
  expect(statSync(path)).toMatchObject({ uid: 0, nlink: 1 })
  expect(statSync(path).mode & 0o777).toBe(0o644)
  writeFileSync(join(ground.dir, 'kept', 'link'), 'forged')
  expect(readFileSync(path, 'utf8')).toBe('data\n')
})

test('a file of another user, linked into the scratch directory, is not published', async () => {
  const secret = join(ground.dir, 'secret')
  writeFileSync(secret, 'of root', { mode: 0o600 })
  const report = await runAsNobody('while [ ! -e go ]; do sleep 0.05; done; rm go', {
    // The kernel refuses such links to others (fs.protected_hardlinks), where that is on.
    onStarted: () => {
      linkSync(secret, join(ground.dir, 'work', 'nobodys', 'scratch', 'stolen'))
      writeFileSync(join(ground.dir, 'work', 'nobodys', 'scratch', 'go'), '')
    },
  })
  expect(report.outputs).toEqual([])
  expect(report.skipped).toEqual([{ name: 'stolen', reason: 'belongs to another user' }])
})

test('the way down is open to that user alone, and other runs stay closed', async () => {
  const base = join(ground.dir, 'work')
  const others = await createWorkdir(base, 'others', '{}')
  expect(statSync(base).mode & 0o777).toBe(0o700)
  const own = await createWorkdir(base, 'own', '{"n":2}', undefined, nobody)
  expect(statSync(base).mode & 0o777).toBe(0o711)
  expect(
    asNobody(`cat ${own.input}; ls ${base} ${own.path} ${others.path}; cat ${others.input}; echo x >${own.path}/y`),
  ).toBe('{"n":2}')
  expect(existsSync(join(own.path, 'y'))).toBe(false)
  expect(statSync(own.input).mode & 0o777).toBe(0o600)
  for (const workdir of [own, others]) await removeWorkdir(workdir)
  expect(existsSync(own.path) || existsSync(others.path)).toBe(false)
})

test('at its limit all processes of that user end, also those that left the session', async () => {
  const report = await runAsNobody('trap "" TERM; env -i setsid sleep $NAP & sleep $NAP', { limitSeconds: 1 })
  expect(report).toMatchObject({ outcome: { kind: 'timed_out' }, kill: { survivors: [] } })
  expect(findLeftovers(ground)).toEqual([])
})

test('a folder on the way, or a program, that is closed to the user is told', async () => {
  chmodSync(ground.dir, 0o700)
  const closed = await runAsNobody('exit 0')
  expect(closed.outcome).toEqual({
    kind: 'not_started',
    detail: expect.stringMatching(/^algorithm test: its user nobody may not enter .*scratch: open the folders/),
  })
  chmodSync(ground.dir, 0o755)
  writeFileSync(join(ground.dir, 'mine'), '#!/bin/sh\n', { mode: 0o700 })
  const barred = await runAsNobody('', { manifest: { command: ['./mine'] } })
  expect(barred.outcome).toMatchObject({ kind: 'not_started', detail: expect.stringMatching(/may not execute .*mine/) })
})

test('a manifest may name the user; root only by its name, and a worker that is not root names only itself', async () => {
  mkdirSync(join(ground.dir, 'x'))
  writeFileSync(join(ground.dir, 'x', 'algorithm.yaml'), 'command: [/bin/sh]\nuser: nobody\nlimits: {processes: 50}\n')
  const { algorithms, broken } = await findAlgorithms({ dirs: [ground.dir], path: PATH, shareable: [] })
  expect([...broken]).toEqual([])
  expect(algorithms.get('x')).toMatchObject({ user: nobody, limits: { processes: 50 } })
  expect(await findUser('root')).toBeUndefined()
  process.seteuid?.(nobody.uid)
  try {
    expect(await findUser('nobody')).toBeUndefined()
    expect(await findUser('root')).toEqual({
      problem: expect.stringMatching(/the worker runs as .* and cannot run anything as root; start the worker as that/),
    })
  } finally {
    process.seteuid?.(0)
  }
})

test('a warm process is that user too: its own directory, that of each job and the settings belong to it, what is published is ours', async () => {
  const slot = openWarm(ground, {
    ...byShell(
      'cat .settings.json >"$dir/settings"; echo "$dir" >"$dir/where"; id -u >home.txt; cat home.txt >"$dir/uid"; echo why >/dev/stderr; answer 1',
    ),
    user: nobody,
  })
  const places: string[] = []
  for (let i = 0; i < 2; i++) {
    const report = await slot.run(
      {},
      {
        settings: { SMTP_HOST: 'mail' },
        look: ({ outputs }) => {
          expect(outputs.map(({ name }) => name)).toEqual(['settings', 'uid', 'where'])
          const [settings = '', uid = '', where = ''] = outputs.map(({ path }) => readFileSync(path, 'utf8').trim())
          expect([settings, uid]).toEqual(['{"SMTP_HOST":"mail"}', String(nobody.uid)])
          places.push(where)
          for (const { path } of outputs) expect(statSync(path).uid).toBe(0)
        },
      },
    )
    expect(report).toMatchObject({ outcome: { kind: 'success' }, stderrTail: 'why\n', logs: ['stderr.log'] })
  }
  expect(places[0]).not.toBe(places[1])
  // Of the folders above it may pass, and list none.
  expect(asNobody(`ls ${slot.workshop}/.warm; ls ${slot.workshop}/.warm/test; ls ${slot.workshop}/.warm/test/*`)).toBe(
    '',
  )
})
