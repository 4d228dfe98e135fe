/**
 * A bucket in a process of its own. Says `ready PORT`.
 *
 *     node s3-server.js DIR BUCKET
 */

import S3rver from 's3rver'

const [directory, bucket] = process.argv.slice(2)
if (bucket === undefined) {
  console.error('usage: s3-server.js DIR BUCKET')
  process.exit(64)
}
const server = new S3rver({
  ...{ address: '127.0.0.1', port: 0, silent: true, directory },
  configureBuckets: [{ name: bucket }],
})
const { port } = await server.run()
console.log(`ready ${port}`)
