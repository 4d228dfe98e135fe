# Binds a datagram socket (a path, or @name for an abstract one) and prints each datagram as a line, LF as "|".
# With a second argument it is deaf: it reads nothing.
use strict;
use Socket;
my ($name, $deaf) = @ARGV;
my $address = $name =~ /^\@(.*)/s ? pack('S a*', AF_UNIX, "\0$1") : pack_sockaddr_un($name);
socket(my $socket, AF_UNIX, SOCK_DGRAM, 0) or die "socket: $!";
bind($socket, $address) or die "bind: $!";
$| = 1;
print "bound\n";
sleep 3600 if $deaf;
while (defined recv($socket, my $datagram, 65536, 0)) {
  $datagram =~ s/\n/|/g;
  print "$datagram\n";
}
