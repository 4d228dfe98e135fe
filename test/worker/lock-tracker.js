// Holds the right to write of a tracker until it is ended.
import Database from 'libsql'

const db = new Database(process.argv[2], { timeout: 10_000 })
db.exec('BEGIN EXCLUSIVE')
console.log('locked')
setInterval(() => db.name, 1000)
