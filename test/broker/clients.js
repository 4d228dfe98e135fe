// Clients that other people wrote, unchanged, through all that they can do. Ends with an error at the first difference.
import assert from 'node:assert/strict'
import beanstalkd from 'beanstalkd'
import jackd from 'jackd'

const port = Number(process.argv[2])

async function useJackd() {
  const client = new jackd()
  await client.connect({ host: '127.0.0.1', port })
  assert.equal(await client.use('jackd'), 'jackd')
  assert.equal(await client.watch('jackd'), 2)
  assert.equal(await client.ignore('default'), 1)
  const id = await client.put('hello', { priority: 5, delay: 0, ttr: 30 })
  assert.equal(String((await client.peekReady()).payload), 'hello')
  const job = await client.reserve()
  assert.deepEqual([job.id, String(job.payload)], [id, 'hello'])
  await client.touch(id)
  assert.match(await client.statsJob(id), /\nstate: reserved\n/)
  await client.release(id, { priority: 6, delay: 100 })
  assert.equal((await client.peekDelayed()).id, id)
  await client.kickJob(id)
  assert.equal((await client.reserveWithTimeout(1)).id, id)
  await client.bury(id, 7)
  assert.equal((await client.peekBuried()).id, id)
  assert.equal(Number(await client.kick(10)), 1)
  assert.equal((await client.reserveJob(id)).id, id)
  await client.delete(id)
  await assert.rejects(client.delete(id), /NOT_FOUND/)
  await assert.rejects(client.reserveWithTimeout(0), /TIMED_OUT/)
  assert.match(await client.stats(), /\ncmd-put: \d+\n/)
  assert.match(await client.listTubes(), /- jackd\n/)
  assert.match(await client.listTubesWatched(), /- jackd\n/)
  assert.equal(await client.getCurrentTube(), 'jackd')
  const big = 'x'.repeat(60_000)
  await Promise.all(Array.from({ length: 50 }, (_, n) => client.put(`${n} ${big}`, { ttr: 30 })))
  for (let n = 0; n < 50; n++) {
    const { id: next, payload } = await client.reserve()
    assert.equal(String(payload), `${n} ${big}`)
    await client.delete(next)
  }
  await client.quit()
}

async function useBeanstalkd() {
  const client = await new beanstalkd.default('127.0.0.1', port).connect()
  assert.equal(await client.use('other'), 'other')
  assert.equal(Number(await client.watch('other')), 2)
  assert.equal(Number(await client.ignore('default')), 1)
  const id = await client.put(5, 0, 30, 'hello')
  const [reserved, body] = await client.reserve()
  assert.deepEqual([reserved, String(body)], [id, 'hello'])
  await client.touch(id)
  assert.equal((await client.statsJob(id)).state, 'reserved')
  await client.release(id, 6, 0)
  assert.equal(String((await client.peekReady())[1]), 'hello')
  await client.reserveWithTimeout(1)
  await client.bury(id, 7)
  assert.equal((await client.peekBuried())[0], id)
  await client.kickJob(id)
  await client.destroy(id)
  await assert.rejects(client.destroy(id), /NOT_FOUND/)
  assert.equal((await client.statsTube('other'))['cmd-delete'], 1)
  assert.equal(typeof (await client.stats())['total-jobs'], 'number')
  assert.ok((await client.listTubes()).includes('other'))
  assert.deepEqual(await client.listTubesWatched(), ['other'])
  await client.quit()
}

await useJackd()
await useBeanstalkd()
console.log('ok')
