# LWP and HTTP::Tiny: CLIENT BASE VARIANT... sends the seed call once a variant, and prints each with the status; further
# bases with variants may follow.
use strict;
use warnings;
use utf8;

my ($client, @given) = @ARGV;
my $base;
my $body = '{"attributes": {"supervisorNote": "テスト"}}';
utf8::encode($body);
my %types = (
    text    => 'text/plain',
    form    => 'application/x-www-form-urlencoded',
    charset => 'application/json; charset=utf-8',
    json    => 'application/json',
);

sub lwp {
    my ($url, $variant) = @_;
    require LWP::UserAgent;
    require HTTP::Request;
    my $agent = LWP::UserAgent->new(timeout => 20);
    my $request = HTTP::Request->new(PATCH => $url, [Authorization => 'Bearer one'], $body);
    $request->header('Content-Type' => $types{$variant}) if $types{$variant};
    if ($variant eq 'gzip') { $request->encode('gzip') or die }
    return $agent->request($request)->code;
}

sub tiny {
    my ($url, $variant) = @_;
    require HTTP::Tiny;
    my %headers = (Authorization => 'Bearer one');
    $headers{'Content-Type'} = $types{$variant} if $types{$variant};
    my @pieces = (substr($body, 0, 10), substr($body, 10));
    my $content = $variant eq 'chunked' ? sub { shift @pieces } : $body;
    my $reply = HTTP::Tiny->new(timeout => 20)->request('PATCH', $url, {headers => \%headers, content => $content});
    return $reply->{status};
}

for my $variant (@given) {
    if ($variant =~ m{://}) { $base = $variant; next }
    my $url = "$base/api/v2/conversations/web/instances/$client-$variant/participants/p1";
    my $status = $client eq 'lwp' ? lwp($url, $variant) : tiny($url, $variant);
    print "$variant $status\n";
}
